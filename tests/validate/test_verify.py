"""Whether a schedule still holds: the verdict, what it rests on, and the exit code."""

import json
import re

import numpy as np
import pytest
import torch

from search import Schedule
from search.models.lora import merge
from search.objectives.drift import Drift
from search.pareto.intervals import bootstrap_interval
from search.results.pick import Condition
from search.results.scores import Score
from search.testing.models import tiny_family, tiny_folder, tiny_model
from search.validate.criteria import claimed_criteria, criteria_for, decide
from search.validate.environment import environment_differences
from search.validate.verdict import Verdict
from search.validate.verifier import Verifier, verify
from search.verify import main
from tests.helpers.claims import by_hand, claiming, made
from tests.helpers.trained_lora import PROMPTS, tiny_lora

ATTENTION = "transformer_blocks.*:attn1"


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def test_it_holds_on_its_own_model_and_measures_what_the_loop_by_hand_does(model):
    schedule = claiming(model)
    verdict = verify(schedule, model, PROMPTS, samples=8)
    assert verdict.passed and verdict.exit_code == 0 and verdict.samples == 8
    assert verdict.values["drift"] == pytest.approx(by_hand(model, schedule), rel=1e-6)
    assert verdict.scores["drift"].value == pytest.approx(verdict.claimed["drift"].value)
    assert {"drift", "psnr", "speedup"} <= set(verdict.scores)
    assert not verdict.differences
    assert "is surely <=" in verdict.reason


def test_prompts_come_again_with_other_noise(model):
    verdict = verify(claiming(model), model, PROMPTS[:1], samples=8)
    assert len(set(verdict.values["drift"])) == 8


def test_a_broken_schedule_fails(model):
    verdict = verify(claiming(model, factor=0.2), model, PROMPTS, samples=8)
    assert verdict.passed is False and verdict.exit_code == 1 and "is surely not <=" in verdict.reason


def test_off_is_exact(model):
    schedule = made(model, "CCCCCC", drift=(0.0, [0.0, 0.0]))
    verdict = verify(schedule, model, PROMPTS, samples=8)
    assert verdict.passed and verdict.scores["drift"] == Score(0.0, 0.0, 0.0)
    assert verdict.scores["psnr"].value == 100


@pytest.mark.slow
def test_another_checkpoint_gives_another_verdict():
    """The same architecture and file, other weights."""
    own, other = tiny_model(), tiny_model()
    for parameter in other.denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    schedule = claiming(own)
    assert verify(schedule, own, PROMPTS, samples=8).passed
    verdict = verify(schedule, other, PROMPTS, samples=8)
    assert verdict.passed is False
    assert verdict.values["drift"] == pytest.approx(by_hand(other, schedule), rel=1e-6)


def test_undecided_where_the_interval_is_on_both_sides(model):
    values = by_hand(model, made(model))
    verdict = verify(made(model), model, PROMPTS, criterion=f"drift<={np.mean(values):.6f}", samples=8)
    assert verdict.passed is None and verdict.exit_code == 3
    assert re.search(r"could be <= .* or not, 8 pictures; measure more pictures with samples=", verdict.reason)


@pytest.mark.slow
def test_it_looks_again_until_it_is_decided_or_the_pictures_are_over(model):
    values = by_hand(model, made(model), 64)
    limit = float(np.mean(values)) * 1.02
    told = []
    verdict = verify(made(model), model, PROMPTS, criterion=f"drift<={limit:.8f}", samples=64, on_message=told.append)
    looks = [8, 16, 32, 64]
    for count in looks:
        low, high = bootstrap_interval(np.array(values[:count]), np.random.default_rng(0))
        if not low <= limit < high:
            break
    assert verdict.samples == count
    assert [line.partition(" ")[0] for line in told[1:]] == [str(n) for n in range(8, count + 1, 8)]


def test_the_time_is_kept(model):
    verdict = verify(made(model), model, PROMPTS, criterion="drift<=0.5 and psnr>=3", batch=4, seconds=1e-9)
    assert verdict.passed is None and verdict.samples == 4
    assert "4 pictures, and 8 are needed; measure longer with seconds=" in verdict.reason


def test_limits_against_intervals_one_by_one():
    span = Score(0.5, 0.4, 0.6)
    for sign, limit, wanted in [
        ("<=", 0.7, True), ("<=", 0.6, True), ("<", 0.6, None), ("<=", 0.5, None), ("<=", 0.4, None), ("<", 0.4, False),
        ("<=", 0.3, False), (">=", 0.3, True), (">=", 0.4, True), (">=", 0.5, None), (">", 0.6, False),
    ]:  # fmt: skip
        assert decide(Condition("drift", sign, limit), span) is wanted, (sign, limit)


def test_what_is_no_number_does_not_hold():
    nothing = Score(float("nan"), float("nan"), float("nan"))
    assert decide(Condition("drift", "<=", 1.0), nothing) is False
    assert decide(Condition("psnr", ">=", 1.0), nothing) is False


def test_criteria_are_the_files_or_what_was_typed(model):
    schedule = made(model, drift=(0.1, [0.08, 0.14]))
    assert criteria_for(schedule, 1.5) == [Condition("drift", "<=", pytest.approx(0.21))]
    assert criteria_for(schedule, 1, "psnr >= 30 dB, drift<5%") == [
        Condition("psnr", ">=", 30.0), Condition("drift", "<", pytest.approx(0.05)),
    ]  # fmt: skip
    calibrated = schedule.with_scores({"drift": {"value": 0.1, "split": "calibration"}})
    assert not claimed_criteria(calibrated)
    for wrong in (made(model), calibrated):
        with pytest.raises(ValueError, match=r'no scores to hold it to; .* criterion="drift<=0.1"'):
            criteria_for(wrong)
    with pytest.raises(ValueError, match=r"tolerance=0.5: give 1 to 100"):
        criteria_for(schedule, 0.5)
    with pytest.raises(ValueError, match=r"there is no score 'macs'; there are drift, psnr, ssim, speedup"):
        criteria_for(schedule, 1, "macs<=0.5")


def test_a_limit_on_the_speed_up(model):
    verdict = verify(made(model), model, PROMPTS, criterion="speedup>=1000 and ssim>=-1", samples=8)
    assert verdict.passed is False and "speedup" in verdict.reason and "ssim" in verdict.scores


def test_what_cannot_decide_is_refused(model):
    for wrong in ({"samples": 7}, {"seconds": 0}, {"seeds": [1, 2]}):
        with pytest.raises(ValueError, match=r"cannot decide anything; give samples=8 or more"):
            verify(made(model), model, PROMPTS, criterion="drift<=1", **wrong)
    with pytest.raises(ValueError, match="at least one prompt"):
        Verifier(model, [])
    with pytest.raises(ValueError, match="prompts.batch=0: give 1 or more"):
        Verifier(model, PROMPTS, batch=0)


def test_what_apply_refuses_is_a_readable_verdict(model):
    fewer = {k: v for k, v in made(model, drift=(0.5, [0.4, 0.6])).to_dict().items() if k not in ("sampler", "digest")}
    verdict = verify(Schedule.from_dict(fewer), tiny_model(steps=9), PROMPTS)
    assert verdict.passed is False and not verdict.values
    assert "cannot run here: this schedule has 6 steps, but the pipeline runs 9" in verdict.reason
    assert "python -m search.transfer carries it over" in verdict.reason
    assert verdict.differences["num_inference_steps"] == ("6", "9")
    other = fewer | {"model": fewer["model"] | {"fingerprint": "f" * 16}}
    verdict = verify(Schedule.from_dict(other), model, PROMPTS)
    assert "model.fingerprint is" in verdict.reason and verdict.differences["fingerprint"][0] == "f" * 16
    strange = fewer | {"model": {"class": "DiTTransformer2DModel", "stacks": {"transformer_blocks": 3}}}
    verdict = verify(Schedule.from_dict(strange), model, PROMPTS)
    assert "model.class is 'DiTTransformer2DModel'" in verdict.reason and "search.transfer" not in verdict.reason


def test_differences_to_what_the_file_records(model):
    record = {"torch": "1.0", "diffusers": "0.1", "device": "cuda NVIDIA H200 8 threads", "model": "pixart"}
    schedule = made(model).with_made(record | {"call": {"num_inference_steps": 7, "other": 1}})
    found = environment_differences(schedule, model)
    assert found["torch"] == ("1.0", torch.__version__) and found["num_inference_steps"] == ("7", "6")
    assert found["device"][0] == "cuda NVIDIA H200" and found["device"][1].startswith("cpu")
    assert set(found) == {"torch", "diffusers", "device", "num_inference_steps"}
    assert "num_inference_steps: 7 in the file, 6 here" in str(
        verify(schedule, model, PROMPTS, criterion="drift<=9", samples=8)
    )


def test_in_a_notebook():
    verdict = Verdict(None, "drift <b>", "drift<=1", {"drift": Score(0.5, 0.4, 0.6)}, {"drift": Score(0.1)})
    text = verdict._repr_html_()
    assert "undecided" in text and "&lt;b&gt;" in text and "0.5000 [0.4000, 0.6000]" in text and "0.1000" in text


# On the command line


@pytest.fixture
def typed(tmp_path):
    """Arguments that name the tiny model and prompts of its vocabulary."""
    (tmp_path / "held_out.txt").write_text("\n".join(PROMPTS))
    (tmp_path / "calibration.txt").write_text("red apple, 3d style")
    return [
        "model=pixart", f"model.path={tiny_folder()}", "model.steps=6", "model.max_sequence_length=8",
        f"prompts.held_out={tmp_path}/held_out.txt", f"prompts.calibration={tmp_path}/calibration.txt",
        "compute.device=cpu", "samples=8",
    ]  # fmt: skip


def test_exit_codes(model, typed, tmp_path, capsys):
    file = str(claiming(model).save(tmp_path / "schedule.json"))
    broken = str(claiming(model, factor=0.2).save(tmp_path / "broken.json"))
    assert main([file, *typed]) == 0
    assert capsys.readouterr().out.startswith("holds: drift ")
    assert main([broken, *typed]) == 1
    assert capsys.readouterr().out.startswith("does not hold: drift ")
    mean = np.mean(by_hand(model, made(model)))
    assert main([file, *typed, f"criterion=drift<={mean:.6f}"]) == 3
    assert capsys.readouterr().out.startswith("undecided: drift ")


@pytest.mark.slow
def test_the_call_of_the_search_is_what_the_model_is_loaded_for(model, typed, tmp_path, capsys):
    file = str(claiming(model).save(tmp_path / "schedule.json"))
    assert main([file, *(t for t in typed if not t.startswith(("model=", "model.steps", "model.max")))]) == 0
    printed = capsys.readouterr().out
    assert "num_inference_steps" not in printed and "max_sequence_length" not in printed
    assert main([file, *typed, "guidance=7"]) in (0, 1, 3)
    assert "guidance_scale: 4.0 in the file, 7.0 here" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "which schedule? Type its file first"),
        (["nowhere.json"], "cannot read 'nowhere.json'"),
        (["FILE", "lora=nowhere"], "lora='nowhere' cannot be merged into this PixArtTransformer2DModel"),
        (["FILE", "tolerance=much"], "tolerance='much' is not a number; type for example tolerance=1.25"),
        (["FILE", "samples=2"], "cannot decide anything"),
        (["FILE", "criterion=drift=2"], "is not understood"),
        (["FILE", "certify=drift<=1", "samples=4"], "takes 32 runs or more, and at most 4 are made"),
        (["FILE", "certify=drift<=1", "share=2"], "share: give a number from 0.01 to 0.9999"),
        (["FILE", "toleranze=2"], "Did you mean tolerance"),
    ],
)
def test_mistakes(arguments, text, model, typed, tmp_path, capsys):
    file = str(claiming(model).save(tmp_path / "schedule.json"))
    rest = typed[:-1] if any("samples" in a for a in arguments) else typed
    assert main([*(file if a == "FILE" else a for a in arguments), *rest]) == 2
    assert text in capsys.readouterr().err


def test_an_edited_file_is_a_mistake(model, typed, tmp_path, capsys):
    file = claiming(model).save(tmp_path / "schedule.json")
    data = json.loads(file.read_text())
    data["plan"]["rules"][0][1] = "CCRRRC"
    file.write_text(json.dumps(data))
    assert main([str(file), *typed]) == 2
    assert "the file was edited" in capsys.readouterr().err


# Certificates


def test_a_certificate_is_renewed_with_the_misses_of_runs_by_hand(model, typed, tmp_path, capsys):
    schedule, most = made(model), 32
    prompts, seeds = [PROMPTS[i % len(PROMPTS)] for i in range(most)], [1_000_000 + i for i in range(most)]
    teacher = model.sample(prompts, seeds)
    with schedule.apply(model.pipe):
        drifts = sorted(Drift()(model.sample(prompts, seeds), teacher).tolist())
    asked = {"prompts": PROMPTS, "samples": most}
    holds = verify(schedule, model, certify=f"drift<={drifts[-1] * 1.01:.6f}", **asked)
    certificate = holds.schedule.certificate
    assert holds.exit_code == 0 and holds.schedule == schedule and str(certificate) in str(holds)
    assert (certificate.runs, certificate.misses, certificate.prompts, certificate.noises) == (32, 0, 4, 8)
    assert certificate.population == "new noise on one of these 4 prompts" and certificate.device == "cpu"
    with holds.schedule.apply(model.pipe, guard=True) as handle:
        model.sample(prompts, seeds)
        assert certificate.monitor.runs == 32 and handle.stats()["unusual_runs"] == 0
    fails = verify(schedule, model, certify=f"drift<={drifts[most // 2]:.6f}", **asked)
    assert (
        fails.exit_code == 1 and fails.schedule is None and "too many for a probability of at least 0.9" in str(fails)
    )
    undecided = verify(holds.schedule, model, seconds=1e-9, batch=4, **asked)  # the certificate of the file
    assert undecided.exit_code == 3 and undecided.samples == 4 and "0 of 4 runs missed drift<=" in undecided.reason
    means = verify(holds.schedule, model, criterion="drift<=1", **asked)  # means, as it is typed
    assert means.passed and means.schedule is None


@pytest.mark.slow
def test_the_command_writes_the_renewed_certificate(model, typed, tmp_path, capsys):
    file = made(model).save(tmp_path / "schedule.json")
    out = tmp_path / "renewed.json"
    assert main([str(file), "certify=drift<=10", "share=0.8", *typed, "samples=16", f"out={out}"]) == 0
    assert capsys.readouterr().out.startswith("holds: ")
    renewed = Schedule.load(out)
    assert renewed == Schedule.load(file) and renewed.certificate.share == 0.8
    assert main([str(out), *typed, "samples=8"]) == 2
    assert "takes 16 runs or more, and at most 8 are made" in capsys.readouterr().err


# Under a LoRA


@pytest.mark.slow
def test_a_merged_lora_is_what_peft_computes(model):
    """W + scale * B A, by hand from the saved tensors."""
    from safetensors.torch import load_file

    folder = tiny_lora(steps=3)
    own, other = tiny_model(), tiny_model()
    merge(other, folder, scale=0.5)
    tensors = load_file(folder / "adapter_model.safetensors")
    name = "transformer_blocks.1.attn2.to_k"
    down, up = (tensors[f"base_model.model.{name}.lora_{k}.weight"] for k in "AB")
    wanted = own.denoiser.get_submodule(name).weight + 0.5 * up @ down
    assert torch.allclose(other.denoiser.get_submodule(name).weight, wanted, atol=1e-6)
    assert type(other.denoiser.get_submodule(name)) is torch.nn.Linear
    with other.apply(made(other)):  # nothing of peft is in the way
        assert torch.isfinite(other.sample(PROMPTS, [1, 2, 3, 4])).all()


def test_a_lora_as_pipelines_load_them(tmp_path):
    """Of a family with load_lora_weights: the same weights, by hand from the adapter that was saved."""
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig, get_peft_model_state_dict

    own, other = tiny_family("sd"), tiny_family("sd")
    unet = tiny_family("sd").pipe.unet
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights="gaussian", target_modules=["to_q"]))
    tensors = get_peft_model_state_dict(unet)
    for tensor in tensors.values():
        torch.nn.init.normal_(tensor)
    other.pipe.save_lora_weights(tmp_path, unet_lora_layers=convert_state_dict_to_diffusers(tensors))
    merge(other, tmp_path, scale=0.5)
    name = next(key for key in tensors if "lora_A" in key).partition(".lora_A")[0]
    up, down = tensors[f"{name}.lora_B.weight"], tensors[f"{name}.lora_A.weight"]
    found = other.denoiser.get_submodule(name)
    assert type(found) is torch.nn.Linear
    assert torch.allclose(found.weight, own.denoiser.get_submodule(name).weight + 0.5 * up @ down, atol=1e-5)


def test_a_lora_for_other_layers_is_refused():
    with pytest.raises(
        ValueError, match=r"lora=.* cannot be merged into this PixArtTransformer2DModel: .* Type lora=<folder"
    ):
        merge(tiny_model(), tiny_folder())


@pytest.mark.slow
def test_a_trained_lora_changes_pictures_and_verify_says_what_it_measured(model, typed, tmp_path, capsys):
    folder = tiny_lora(steps=60)
    other = tiny_model()
    given = PROMPTS, range(4)
    before = other.sample(*given)
    merge(other, folder)
    assert Drift()(other.sample(*given), before).min() > 0.1
    schedule = claiming(model)
    file = str(schedule.save(tmp_path / "schedule.json"))
    code = main([file, *typed, f"lora={folder}"])
    values = by_hand(other, schedule)
    printed = capsys.readouterr().out
    assert f"drift    {np.mean(values):.4f}" in printed
    high, mean = criteria_for(schedule)[0].limit, np.mean(values)
    assert code == (0 if mean <= high else 1) or code == 3

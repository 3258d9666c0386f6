"""The command line: every way to say it, quick help, hints, and run folders that never collide."""

import importlib
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import yaml

from search.__main__ import commands, help_text, main
from search.config.compose import GROUPS, compose_config, list_options, normalise_overrides
from search.config.settings import CONF
from search.results.disk import new_run_folder


def tell(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert captured.err.startswith("error: ")
    return captured.err


@pytest.mark.parametrize("arguments", [[], ["space=cache"], ["+space=cache"], ["++space=cache", "model=pixart"]])
def test_space_can_be_said_in_every_way(arguments: list[str]) -> None:
    assert list(compose_config(normalise_overrides(arguments))["space"]) == ["cache"]


def test_a_plus_before_any_group_does_no_harm() -> None:
    raw = compose_config(normalise_overrides(["+engine=random", "++model=pixart_alpha_256", "+objective=[ssim,macs]"]))
    assert raw["engine"]["_target_"].endswith("RandomEngine")
    assert (raw["model"]["name"], list(raw["objective"])) == ("pixart_alpha_256", ["ssim", "macs"])


def test_without_the_extra_the_command_to_install_it_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(*_: Any) -> None:
        raise ModuleNotFoundError("No module named 'hydra'", name="hydra")

    monkeypatch.setattr("search.__main__.compose_config", absent)
    assert 'pip install "diffusion-schedule-search[search]"' in tell(capsys)


def test_keys_of_a_space_are_left_alone() -> None:
    raw = compose_config(normalise_overrides(["space=cache", "space.cache.granularity=block"]))
    assert raw["space"]["cache"]["granularity"] == "block"


def test_objectives_are_a_list() -> None:
    assert list(compose_config(normalise_overrides(["objective=[ssim,latency,memory]"]))["objective"]) == [
        "ssim",
        "latency",
        "memory",
    ]


def test_joint_spaces_and_options_from_another_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "space").mkdir()
    (tmp_path / "space" / "mine.yaml").write_text("# @package space.mine\n_target_: mine.Space\n")
    assert main(["--config-dir", str(tmp_path), "+space=[cache,mine]", "--cfg", "job", "seed=3"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert list(shown["space"]) == ["cache", "mine"]
    assert shown["seed"] == 3
    assert "is not a folder" in tell(capsys, "--config-dir", str(tmp_path / "nowhere"))


def test_help_has_a_line_for_every_group_and_three_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    on_disk = {path.name for path in CONF.iterdir() if list(path.glob("*.yaml"))}
    assert on_disk == set(GROUPS)
    for group in GROUPS:
        assert f"one of: {', '.join(list_options(group))}\n" in text
    assert text.count("  python -m search ") == 3


def test_examples_of_the_help_compose() -> None:
    from search.__main__ import EXAMPLES

    for example in EXAMPLES:
        compose_config(normalise_overrides(example.split()[3:]))


def test_help_imports_nothing_heavy(root: Path) -> None:
    code = (
        "import sys; sys.argv = ['search', '--help']\n"
        "import runpy\n"
        "try: runpy.run_module('search', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print(sorted({'torch', 'diffusers', 'mlflow', 'pydantic', 'pymoo', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


COMMANDS = ("budget", "contract", "explain", "export", "generate", "promote", "report", "send", "transfer", "verify")


def test_help_lists_every_command_with_its_line(root: Path) -> None:
    _, _, listed = help_text().partition("Other commands, ")
    lines = dict(line.split(None, 1) for line in listed.splitlines()[1:])
    assert tuple(lines) == tuple(commands()) == COMMANDS
    for name, line in lines.items():
        text = (root / "search" / f"{name}.py").read_text(encoding="utf-8")
        assert text.startswith(f'"""python -m search.{name}: {line}')


def test_commands_are_found_from_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text('"""python -m search.mine: says hello."""\n')
    (tmp_path / "other.py").write_text('"""What the commands share."""\n')
    monkeypatch.setattr("search.__main__.__file__", str(tmp_path / "__main__.py"))
    assert commands() == {"mine": "says hello"}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_may_be_named_first(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    said = capsys.readouterr().out
    assert importlib.import_module(f"search.{name}").main(["--help"]) == 0
    assert said == capsys.readouterr().out and said.startswith(f"python -m search.{name}: ")


def test_a_command_named_first_gets_its_options_and_returns_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", f"runs={tmp_path}"]) == 2
    assert f"error: there is no search in {tmp_path} yet" in capsys.readouterr().err


def test_a_word_that_is_not_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    told = tell(capsys, "exprt", "run=latest")
    assert "'exprt' is not a command. Did you mean export? There are budget, contract, explain" in told
    assert "options of a search are written key=value" in told


def test_mistakes_are_told_before_torch_is_imported(root: Path) -> None:
    code = (
        "import sys; from search.__main__ import main\n"
        "assert main(['model.steps=0']) == 2\n"
        "assert not {'torch', 'diffusers', 'mlflow'} & set(sys.modules), 'imported too early'"
    )
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        (
            "space=cach",
            "space=cach is not an option. Did you mean cache? Available options: bits, cache, depth, gates",
        ),
        ("model=pixrt", "Did you mean pixart? Available options: any, aura_flow, chroma1_hd"),
        ("objective=[drift,mac]", "Did you mean macs?"),
        (
            "engine=",
            "engine= is not an option. Available options: anneal, autodiffusion, bayes, beam",
        ),
        ("space=", "space= is not an option. Available options: bits, cache"),
        ("modle=pixart", "Did you mean model?"),
        ("model.stepz=3", "Did you mean model.steps?"),
        ("+sede=3", "Did you mean seed?"),
        ("+model.foo=3", "there is no model.foo."),
        ("space.granularty=step", "Did you mean space.skip.granularity?"),
        ("engine.poplation=3", "Did you mean engine.population?"),
        ("model.steps=0", "from 1 to 1000"),
        ("objective=drift", "name at least two"),
        ("model.steps", "missing EQUAL"),
        ("-m", "there is no flag -m"),
        ("seed=${nowhere}", "nowhere"),
    ],
)
def test_mistakes(argument: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told in tell(capsys, argument)


def test_a_group_given_twice(capsys: pytest.CaptureFixture[str]) -> None:
    assert "join several as space=[a,b]" in tell(capsys, "+space=cache", "space=cache")


def test_nothing_is_written_by_looking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["--help"])
    main(["--cfg", "job"])
    main(["seed=-1"])
    assert list(tmp_path.iterdir()) == []


def test_mistakes_of_classes_are_told_and_bugs_are_not_hidden(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from hydra.utils import instantiate

    import search

    def run_of(action: Any) -> Any:
        return type(sys)("search.loop.run"), action

    for action, told in [
        (lambda config: instantiate(config.space["cache"]), "granularity 'rows' is unknown; choose from"),
        (lambda config: instantiate(config.space["cache"] | {"granularity": "step", "x": 1}), "argument 'x'"),
    ]:
        module, module.run = run_of(action)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "search.loop.run", module)
        monkeypatch.setattr(search, "run", module, raising=False)
        assert told in tell(capsys, "space.cache.granularity=rows")
    module.run = lambda config: 1 / 0
    with pytest.raises(ZeroDivisionError):
        main([])


def _folders(root: str) -> list[str]:
    return [new_run_folder(Path(root), "cache", "pixart").name for _ in range(20)]


def test_run_folders_say_when_and_what(tmp_path: Path) -> None:
    name = new_run_folder(tmp_path / "deep" / "runs", "cache+bits", "a/b c").name
    date, clock, rest = name.split("_", 2)
    assert datetime.strptime(date + clock, "%Y-%m-%d%H%M%S")
    assert rest == "cache+bits_a-b-c"


def test_two_processes_never_share_a_run_folder(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        first, second = pool.map(_folders, [str(tmp_path)] * 2)
    assert len({*first, *second}) == 40 == len(list(tmp_path.iterdir()))


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("schedule-search model=pixart_s", ["model=pixart_sigma_1024", "model=pixart_small"]),
        ("schedule-search +space=", ["+space=cache", "+space=timesteps"]),
        ("schedule-search budget.", ["budget.evaluations=", "budget.minutes="]),
    ],
)
def test_a_shell_is_told_what_completes_a_word(root, line, offered):
    done = subprocess.run(
        [sys.executable, "-m", "search", "-sc", "query=bash"],
        env=os.environ | {"COMP_LINE": line, "COMP_POINT": str(len(line))},
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(offered) <= set(done.stdout.split())

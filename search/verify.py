"""python -m search.verify: whether a schedule still holds, on this device, checkpoint, LoRA, resolution, step count.

    python -m search.verify schedule.json lora=my_lora model.steps=30

schedule=      the schedule file
criterion=     such as "drift<=0.1 and psnr>=30"; also ssim and speedup. By default what the file itself claims:
               drift at most `tolerance` times the upper end of its interval
certify=       what every run must meet, such as "psnr>=30"; by default that of the file's certificate, which is renewed
               with other noise; off verifies means. criterion= takes its place
share=0.9, confidence=0.95
               of the certificate that certify= asks for
out=           the file to write with the renewed certificate, if it is given
tolerance=1.25 how much more drift than claimed
seconds=60     time that it may take, without loading
samples=256    pictures at most
lora=          weights to merge before: a folder that peft has saved, or what pipe.load_lora_weights takes
lora_scale=1   how much of them
guidance=      the guidance scale, for model.guidance_scale
model=         the pipeline, by default the one that the schedule was searched on, called as it was there; also
               model.path=, model.steps=, model.height=, prompts.held_out=, prompts.batch=, compute.device=

The pipeline runs with and without the schedule on held-out prompts from the same noise. After 8 pictures, 16, 32, … the
95 % bootstrap interval of each mean is looked at. The schedule holds where the whole interval is within the limit, and
does not where the whole interval is beyond it; while the limit lies inside, more pictures are taken, until the time is
over. Nothing is corrected for having looked several times; in a certificate everything is (docs/certificates.md). A
speed-up is the median of three timed rounds, and its interval their range. Exit code: 0 it holds, 1 it does not, 2 a
mistake in what was typed, 3 undecided.
"""

import sys

from search.config.options import Options, number_option, run_command

DEFAULTS = {
    "schedule": "", "criterion": "", "tolerance": "1.25", "seconds": "60", "samples": "256", "lora": "",
    "lora_scale": "1", "guidance": "", "certify": "", "share": "0.9", "confidence": "0.95", "out": "",
}  # fmt: skip


def main(arguments: list[str]) -> int:
    """Parse `key=value`, verify, print the verdict; the exit code says it too."""
    return run_command(arguments, __doc__, _work, DEFAULTS, first="schedule", configurable=True)


def _work(options: Options) -> int:
    from rich.console import Console

    from search.config.load import held_out_prompts, load_from_options
    from search.config.settings import Certify
    from search.schedule import Schedule
    from search.validate.criteria import criteria_for
    from search.validate.renewal import renew_certificate, renewal_noise, settings_for
    from search.validate.verifier import Verifier

    numbers = ("tolerance", "seconds", "samples", "share", "confidence")
    given = {name: number_option(name, options, DEFAULTS) for name in numbers}
    criterion, certify = options["criterion"], options["certify"] or ("off" if options["criterion"] else "")
    limits, settings = [], Certify()
    if options["schedule"]:  # what there is nothing to hold to need not be loaded
        loaded = Schedule.load(options["schedule"])
        settings = settings_for(loaded, certify, given["share"], given["confidence"], int(given["samples"]))
        limits = criteria_for(loaded, given["tolerance"], criterion) if settings.criterion is None else []
    with Console(stderr=True).status("loading") as status:
        schedule, model, config = load_from_options(options)
        prompts, seed, batch = held_out_prompts(config, options.overrides), config.prompts.seed, config.prompts.batch
        if settings.criterion is None:
            verifier = Verifier(model, prompts, batch=batch, seed=seed)
            verdict = verifier.verify(schedule, limits, given["seconds"], int(given["samples"]), status.update)
        else:
            noise = renewal_noise(int(given["samples"]), seed)
            particular = {name: options[name] for name in ("lora", "guidance") if options[name]}
            verifier = Verifier(model, prompts, noise, batch)
            verdict = renew_certificate(verifier, schedule, settings, given["seconds"], particular, status.update)
    print(verdict)
    print(f"  {verdict.seconds:.0f} s; criterion {verdict.criterion}")
    if options["out"] and verdict.schedule is not None:
        print(verdict.schedule.save(options["out"]))
    return verdict.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

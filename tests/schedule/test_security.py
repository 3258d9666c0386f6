"""Schedules from strangers: nothing in a file is run, opened or fetched, and what it costs to refuse it is bounded.

Files are read and applied in a process of its own whose audit hook reports every file, import, process and socket, and
whose address space is bounded. See also test_fuzz.py, and test_schedule_format.py for what each mistake is told.
"""

import hashlib
import json
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import pipelines

CHILD = r"""
import json, os, resource, sys, time, warnings
warnings.simplefilter("ignore")
import torch, diffusers
from pathlib import Path
from search import Schedule, ScheduleError
from tests.helpers import pipelines

torch.set_num_threads(1)
folder, order = Path(sys.argv[1]), json.loads(sys.argv[2])
allowed, events, on = str(folder), [], False

def watch(event, arguments):
    if not on or event in ("os.listdir", "os.scandir"):
        return
    if event.split(".")[0] in ("open", "exec", "import", "os", "socket", "subprocess", "shutil", "pickle", "ctypes",
                               "urllib", "http", "tempfile", "marshal", "code"):
        name = str(arguments[0]) if arguments else ""
        if not (event == "open" and name.startswith(allowed) and arguments[1] in ("r", "rb", None)):
            events.append([event, name[:200]])

pipe = pipelines.pixart()
def attempt(name):
    began = time.process_time()
    try:
        schedule = Schedule.load(folder / name)
        told = "valid"
        try:
            with schedule.apply(pipe):
                pipelines.run(pipe, steps=schedule.steps or 6, batch=1)
        except ScheduleError as error:
            told = f"refused when applied: {error}"
    except ScheduleError as error:
        told = f"refused: {error}"
    return told, time.process_time() - began

diffusers.DPMSolverMultistepScheduler, diffusers.UniPCMultistepScheduler  # the class that a file names is imported
for name in ("good.json", "corrected.json", "broken.json"):  # what is imported lazily is imported here
    attempt(name)
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30, resource.RLIM_INFINITY))
sys.addaudithook(watch)
found = {}
for name in order:
    events.clear()
    on = True
    try:
        told, seconds = attempt(name)
    except BaseException as error:
        told, seconds = f"ESCAPED {type(error).__name__}: {error}"[:500], 0
    on = False
    found[name] = [told, seconds, list(events)]
print("RESULT" + json.dumps(found))
"""


class Evil:
    """A pickle that makes a folder when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def tensors(header: dict[str, Any], data: bytes = b"") -> bytes:
    """A .safetensors file by hand."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def hostile(folder: Path) -> dict[str, str]:
    """Files by name, and what each has to end in: a part of the message, or `valid`."""
    pipe = pipelines.pixart()
    good = pipelines.content(pipe, [["transformer_blocks.*:ff", "CRCRCR"]], made={"by": "test"})
    sampler = {"class": "DPMSolverMultistepScheduler", "config": {}}
    steps = {"transformer_blocks.0:ff": [1, 3, 5]}
    wanted: dict[str, str] = {}

    def put(name: str, content: Any, told: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / f"{name}.json").write_bytes(data)
        wanted[f"{name}.json"] = told

    def beside(name: str, data: bytes, told: str, digest: str = "") -> None:
        """A schedule whose corrections are this file."""
        (folder / f"{name}.safetensors").write_bytes(data)
        digest = digest or "sha256:" + hashlib.sha256(data).hexdigest()
        put(name, good | {"corrections": {"digest": digest, "steps": steps}}, told)

    put("good", good, "valid")
    put("broken", b"{", "not a complete JSON")
    # Texts that are code, paths or addresses somewhere else
    for i, text in enumerate(
        (
            "__import__('os').system('id')",
            "../../../etc/passwd",
            "file:///etc/passwd",
            "https://example.org/x",
            "$(id)",
            "${oc.env:HOME}",
        )
    ):
        put(f"text{i}made", good | {"made": {"note": text, "model": text}}, "valid")
        put(f"text{i}rule", good | {"plan": {"rules": [[text, "CRCRCR"]]}}, "plan.rules[0]: selector")
        put(f"text{i}actions", good | {"plan": {"rules": [["denoiser", text]]}}, "plan.rules[0]")
        put(f"text{i}class", good | {"model": good["model"] | {"class": text}}, "model.class")
        put(f"text{i}sampler", good | {"sampler": sampler | {"class": text}}, "refused")
        put(f"text{i}digest", good | {"corrections": {"digest": text, "steps": steps}}, "corrections.digest")
        put(f"text{i}layer", good | {"bits": {"formats": {"w8": {"weight": 8}}, "layers": {text: "w8"}}}, "bits.layers")
        put(f"text{i}score", good | {"scores": {text: {"value": 1.0}}}, "valid")
    # Classes of diffusers that are no schedulers, attributes of modules and objects
    for i, name in enumerate(
        ("DiffusionPipeline", "StableDiffusionPipeline", "utils", "__class__", "os", "AutoModel", "logging")
    ):
        put(f"class{i}", good | {"sampler": {"class": name, "config": {}}}, "refused")
    keys = ("__class__", "_class_name", "trust_remote_code", "pretrained_model_name_or_path", "return_unused_kwargs")
    for i, key in enumerate(keys):
        put(f"config{i}", good | {"sampler": sampler | {"config": {key: "https://example.org"}}}, "sampler.config has")
    put(
        "solver",
        good | {"sampler": {"class": "UniPCMultistepScheduler", "config": {"solver_p": "os.system"}}},
        "sampler.config",
    )
    # Numbers
    for i, number in enumerate((b"1e999", b"-Infinity", b"NaN", b"9" * 100_000, b"1" + b"0" * 400)):
        put(f"number{i}", json.dumps(good).encode().replace(b'"test"', number), "refused")
    put("steps", good | {"steps": 10**18}, "steps is")
    put("training", good | {"sampler": sampler | {"config": {"num_train_timesteps": 10**9}}}, "num_train_timesteps")
    put("betas", good | {"sampler": sampler | {"config": {"trained_betas": [0.1] * 20_001}}}, "20001 entries")
    put("stacks", good | {"model": good["model"] | {"stacks": {"transformer_blocks": 10**9}}}, "model.stacks")
    # Run lengths that would fill the memory, patterns that would take for ever, depth
    put("lengths", good | {"plan": {"rules": [["denoiser", "(" * 50 + "C" + "*9999)" * 50]]}}, "plan.rules[0]")
    put("deep", b'{"format":"schedule/1","made":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001, "nested too deep")
    put("brackets", good | {"plan": {"rules": [["transformer_blocks." + "[" * 9000, "C"]]}}, "plan.rules[0]")
    put("ranges", good | {"plan": {"rules": [["transformer_blocks.[0-999999999]:ff", "C*6"]]}}, "plan.rules[0]")
    put(
        "groups",
        good
        | {
            "gates": [
                {
                    "group": "+".join(["transformer_blocks.*"] * 3000),
                    "actions": "C*6",
                    "signal": "residual",
                    "threshold": 0.1,
                }
            ]
        },
        "gates",
    )
    put("many", good | {"plan": {"rules": [["transformer_blocks.*:*", "CRCRCR"]] * 20_000}}, "")
    put("long", good | {"made": {"k" * 3_000_000: 1}}, "")
    put("large", b'{"format": "' + b"x" * 5_000_000 + b'"}', "more than the 4194304 bytes")
    # Keys
    put("twice", json.dumps(good)[:-1].encode() + b', "steps": 6, "steps": 9999999}', "steps")
    put("proto", good | {"__proto__": {"a": 1}}, "__proto__ is not a field")
    put("dunder", good | {"__class__": "os"}, "__class__ is not a field")
    put("pickle", pickle.dumps(Evil(folder / "made-by-json")), "not a complete JSON")
    # Tensors
    fp16 = {"dtype": "F16", "shape": [3, 16], "data_offsets": [0, 96]}
    pair = {"transformer_blocks.0:ff.scale": fp16, "transformer_blocks.0:ff.shift": fp16 | {"data_offsets": [96, 192]}}
    beside("corrected", tensors(pair, b"\0\x3c" * 96), "valid")
    beside("pickled", pickle.dumps(Evil(folder / "made-by-tensors")), "is not a .safetensors file")
    beside(
        "huge",
        tensors({n: t | {"shape": [3, 2**40]} for n, t in pair.items()}, bytes(192)),
        "is not a .safetensors file",
    )
    beside("header", struct.pack("<Q", 2**62) + b"{}", "is not a .safetensors file")
    beside("overlap", tensors(dict.fromkeys(pair, fp16), bytes(96)), "is not a .safetensors file")
    beside("other", tensors(pair, b"\0\x3c" * 96), "corrections.digest", "sha256:" + "0" * 64)
    beside("nan", tensors(pair, b"\xff\x7f" * 96), "not finite")
    beside("names", tensors({"../../x": fp16}, bytes(96)), "the tensor '../../x'")
    beside(
        "wide", tensors(pair | {n: t | {"dtype": "F64", "shape": [3, 4]} for n, t in pair.items()}, bytes(192)), "need"
    )
    with (folder / "sparse.safetensors").open("wb") as file:
        file.truncate(2**33)  # 8 GiB that take no place
    put(
        "sparse",
        good | {"corrections": {"digest": "sha256:" + "0" * 64, "steps": steps}},
        "more than the 268435456 bytes",
    )
    # Names in the file system
    (folder / "link.json").symlink_to("/etc/passwd")
    wanted["link.json"] = "not a complete JSON"
    (folder / "self.json").symlink_to("self.json")
    wanted["self.json"] = "cannot read"
    (folder / "directory.json").mkdir()
    wanted["directory.json"] = "is a folder"
    (folder / "zero.json").symlink_to("/dev/zero")
    wanted["zero.json"] = "is a device"
    return wanted


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the address space is bounded by what Linux tells")
def test_hostile_files_do_nothing(tmp_path: Path, root: Path) -> None:
    wanted = hostile(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    given = [sys.executable, "-c", CHILD, str(tmp_path), json.dumps(list(wanted))]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(given, capture_output=True, text=True, cwd=root, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.rpartition("RESULT")[2])
    wrong = {
        name: (told, found[name][0][:300])
        for name, told in wanted.items()
        if found[name][0].startswith("ESCAPED") or told.removeprefix("refused") not in found[name][0]
        or (told == "valid") != (found[name][0] == "valid") and told
    }  # fmt: skip
    assert not wrong
    assert {name: events for name, (_, _, events) in found.items() if events} == {}
    assert max(seconds for _, seconds, _ in found.values()) < 60
    assert all(len(told) < 2500 for told, _, _ in found.values())
    assert sorted(path.name for path in tmp_path.iterdir()) == before  # and nobody has made a folder


@pytest.mark.slow
def test_the_hook_reports_what_would_be_done(tmp_path: Path, root: Path) -> None:
    """The test above can fail: with a reader that unpickles, opens and imports, the same hook tells."""
    hostile(tmp_path)
    (tmp_path / "pickle.json").write_bytes(pickle.dumps(Evil(tmp_path / "made-by-json")))
    child = CHILD.replace("sys.addaudithook(watch)", "sys.addaudithook(watch); import pickle, socket").replace(
        "schedule = Schedule.load(folder / name)",
        "schedule = (open('/etc/passwd').close(), socket.socket().close(), pickle.loads((folder / name).read_bytes())) "
        "if on else Schedule.load(folder / name)",
    )
    given = [sys.executable, "-c", child, str(tmp_path), json.dumps(["pickle.json"])]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(given, capture_output=True, text=True, cwd=root, env=environment)
    events = {event for event, _ in json.loads(done.stdout.rpartition("RESULT")[2])["pickle.json"][2]}
    assert {"open", "socket.__new__", "pickle.find_class", "os.mkdir"} <= events
    assert (tmp_path / "made-by-json").exists()

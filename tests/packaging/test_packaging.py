"""The same imports in every way of installing, also beside Hugging Face's `kernels`; what is in the two wheels."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

import search

MAPPED = {"spaces", "objectives", "kernels", "conf"}  # stand at the root, belong to search
CHECKOUT_ONLY = ("search/models/training/", "search/models/bundled/")
PACKAGE = "diffusion_schedule_search_models"
LOOK = (
    "import search.spaces.cache, search.objectives.drift, search.engines.random, search.kernels\n"
    "from search import Schedule\n"
    "print(search.__file__); print(search.spaces.cache.__file__); print(Schedule.__module__)"
)
# The same without torch, which takes seconds; of a checkout also where the bundled models are.
FIND = (
    "from importlib.util import find_spec\n"
    "from search.profile.bundled import bundled_model\n"
    "for name in ('search.spaces.cache', 'search.objectives.drift', 'search.engines.random', 'search.schedule'):\n"
    "    print(find_spec(name).origin)\n"
    "print(bundled_model('pixart').resolve())"
)
CLASHES = (
    "import kernels, importlib.metadata\n"
    "assert kernels.STUB, kernels\n"
    "assert importlib.metadata.version('kernels') == '0.18.2'\n"
    "from diffusers import PixArtAlphaPipeline\n"
    "import search.spaces.cache\n"
    "print('fine')"
)


@pytest.fixture(scope="session")
def project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text())


@pytest.fixture(scope="session")
def clean(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a clone has, so that building leaves nothing behind."""
    copy = tmp_path_factory.mktemp("clone") / "repository"
    ignore = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs")
    shutil.copytree(root, copy, ignore=ignore, symlinks=True)
    return copy


@pytest.fixture(scope="session")
def wheel(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(clean, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def models_wheel(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the bundled models."""
    return build(clean / "packages" / "bundled-models", tmp_path_factory.mktemp("models"))


def build(source: Path, out: Path) -> Path:
    """The wheel of the project in `source`."""
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*pip, "--wheel-dir", str(out), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (built,) = out.glob("*.whl")
    return built


def environment(folder: Path, *packages: str) -> str:
    """A virtual environment that sees the packages of this one, with one thing more; returns its python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    (site,) = (folder / "lib").glob("python3*/site-packages")
    # Not --system-site-packages: that would bring an editable install of this environment along.
    (site / "outer.pth").write_text(f"{Path(pytest.__file__).parent.parent}\n")
    install(python, *packages)
    return python


def install(python: str, *packages: str) -> None:
    pip = [sys.executable, "-m", "pip", "--python", python, "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--no-deps", "--no-build-isolation", "--no-index", *packages], check=True)


def outside(python: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python` in `folder`, in an environment in which nothing points at this checkout."""
    names = {"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run([python, *arguments], cwd=folder, capture_output=True, text=True, env=names)


def run(python: str, folder: Path, code: str) -> str:
    done = outside(python, folder, "-c", code)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def stub(folder: Path) -> Path:
    """What an installed Hugging Face `kernels` looks like to transformers."""
    (folder / "kernels").mkdir(parents=True)
    # Any name that is asked for is a class whose instances, used as decorators, change nothing.
    body = (
        "STUB = True\n"
        "def __getattr__(name):\n"
        "    if name.startswith('__'): raise AttributeError(name)\n"
        "    does = {'__init__': lambda self, *a, **k: None, '__call__': lambda self, x=None, *a, **k: x}\n"
        "    return type(name, (), does)\n"
    )
    (folder / "kernels" / "__init__.py").write_text(body)
    metadata = folder / "kernels-0.18.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.18.2\n")
    (metadata / "RECORD").write_text("kernels/__init__.py,,\n")
    (metadata / "top_level.txt").write_text("kernels\n")
    return folder


def test_kernels_has_no_init(root: Path) -> None:
    """With one, every diffusers pipeline fails to import in a checkout beside Hugging Face's kernels."""
    assert not (root / "kernels" / "__init__.py").exists()
    assert "must not contain" in (root / "kernels" / "README.md").read_text()


def test_every_folder_is_listed(root: Path, project: dict[str, Any]) -> None:
    """But the code that trains the bundled models, which only a checkout has."""
    found = {"search"}
    for top in ("search", *sorted(MAPPED)):
        for file in (root / top).rglob("*.py"):
            parts = file.relative_to(root).parent.parts
            found.add(".".join(parts if top == "search" else ("search", *parts)))
    setuptools = project["tool"]["setuptools"]
    assert sorted(found - {"search.models.training"} | {"search.kernels"}) == setuptools["packages"]
    mapping = {"search": "search"} | {f"search.{name}": name for name in MAPPED}
    assert setuptools["package-dir"] == mapping


def test_only_one_name_for_each_module(root: Path) -> None:
    for name in ("spaces", "objectives", "search.search"):
        code = f"import {name}"
        done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
        assert done.returncode == 1
        assert "ImportError: import 'search" in done.stderr


def test_importing_search_is_instant_and_public_names_are_lazy(root: Path) -> None:
    code = (
        "import sys, search\n"
        "assert not {'torch', 'numpy', 'diffusers'} & set(sys.modules)\n"
        "try: search.Scedule\n"
        "except AttributeError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert f"no attribute 'Scedule'; public names are {', '.join(search.__all__)}" in done.stdout
    assert {"Schedule", "ScheduleError"} <= set(search.__all__)


def test_the_version_has_one_source(root: Path, project: dict[str, Any], tmp_path: Path) -> None:
    assert "version" not in project["project"] and project["project"]["dynamic"] == ["version"]
    (tmp_path / "search").mkdir()
    shutil.copy(root / "pyproject.toml", tmp_path)
    text = (root / "search" / "__init__.py").read_text(encoding="utf-8")
    changed = text.replace(f'__version__ = "{search.__version__}"', '__version__ = "7.8.9"')
    (tmp_path / "search" / "__init__.py").write_text(changed + "\nraise ImportError('read, never imported')\n")
    code = (
        "from setuptools.config.pyprojecttoml import read_configuration\n"
        "print(read_configuration('pyproject.toml', ignore_option_errors=True)['project']['version'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "7.8.9"


@pytest.mark.slow
def test_uninstalled(clean: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "venv", str(_nothing(tmp_path)))
    assert run(python, clean, LOOK).splitlines()[1] == str(clean / "spaces" / "cache.py")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "strict"])
def test_editable(clean: Path, tmp_path: Path, mode: str) -> None:
    settings = [] if mode == "default" else ["--config-settings", f"editable_mode={mode}"]
    python = environment(tmp_path / "venv", *settings, "-e", str(clean))
    for folder in (clean, tmp_path):
        *modules, models = run(python, folder, FIND).splitlines()
        files = ("spaces/cache.py", "objectives/drift.py", "search/engines/random.py", "search/schedule/__init__.py")
        assert [Path(module).resolve() for module in modules] == [clean / file for file in files]
        assert Path(models) == clean / "search" / "models" / "bundled" / "pixart"
    assert run(python, tmp_path, LOOK).splitlines()[2].startswith("search.schedule")


@pytest.mark.slow
def test_wheel(wheel: Path, clean: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "venv", str(wheel))
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "site-packages" in run(python, empty, LOOK).splitlines()[1]
    assert run(python, clean, LOOK).splitlines()[1] == str(clean / "spaces" / "cache.py")
    done = subprocess.run(
        [python, "-m", "search", "model=pixart_alpha_256", "--cfg", "job"],
        cwd=empty,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "general_calibration.txt" in done.stdout
    top = {p.name for p in next((tmp_path / "venv" / "lib").glob("python3*/site-packages")).iterdir()}
    assert not top & MAPPED


@pytest.mark.slow
def test_wheel_holds_everything(wheel: Path, clean: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    wanted = {"search/py.typed"}
    for top in ("search", *sorted(MAPPED)):
        kinds = (".py", ".cu", ".yaml", ".txt", ".html", ".css", ".js", ".json")
        files = [p.relative_to(clean).as_posix() for p in (clean / top).rglob("*") if p.suffix in kinds]
        prefix = "" if top == "search" else "search/"
        wanted |= {f"{prefix}{file}" for file in files if not file.startswith(CHECKOUT_ONLY)}
    assert wanted <= names, sorted(wanted - names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"search", "diffusion_schedule_search"}


@pytest.mark.slow
def test_the_wheel_is_small(wheel: Path) -> None:
    """No weights, no code that trains them."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert not [name for name in names if "/bundled/" in name or "/training/" in name]
    assert wheel.stat().st_size < 1e6


@pytest.mark.slow
def test_the_wheel_of_the_bundled_models_holds_them_all(models_wheel: Path, clean: Path) -> None:
    folder = clean / "search" / "models" / "bundled"
    with zipfile.ZipFile(models_wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        notices = {name.split("/")[-1] for name in archive.namelist() if "/licenses/" in name}
    assert names == {f"{PACKAGE}/{p.relative_to(folder)}" for p in folder.rglob("*") if p.is_file()}
    assert any(name.endswith(".safetensors") for name in names), "the weights are missing"
    assert notices == {"LICENSE", "NOTICE"}


def test_a_missing_bundled_model_says_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from search.models.loading import load_any
    from search.objectives.clip import Clip

    monkeypatch.setattr("search.profile.bundled.CHECKOUT", tmp_path / "nowhere")
    monkeypatch.setattr("search.profile.bundled.PACKAGE", "no_such_package")
    command = r"type pip install \./packages/bundled-models in a checkout"
    with pytest.raises(ValueError, match=rf"'pixart' is not installed: {command} .*, or model\.path=<folder"):
        load_any("pixart", torch.float32)
    with pytest.raises(ValueError, match=rf"'clip' is not installed: {command} .*, or objective\.clip\.path=<folder"):
        Clip().score(torch.zeros(1, 3, 64, 64), ["a cat"])
    with pytest.raises(ValueError, match="nobody/nothing' cannot be loaded"):  # a hub id is not a bundled model
        load_any("nobody/nothing", torch.float32)


@pytest.mark.slow
def test_the_readmes_search_from_two_wheels(wheel: Path, models_wheel: Path, tmp_path: Path) -> None:
    """Outside of a checkout: with the models it searches, without them it says what to install."""
    python = environment(tmp_path / "venv", str(wheel))
    empty = tmp_path / "empty"
    empty.mkdir()
    command = ["-m", "search", "+space=cache", "model=pixart", "model.steps=4", "budget=quick", "budget.evaluations=8"]
    small = ["prompts.calibration_count=2", "prompts.held_out_count=2", "tracking.enabled=false", "certify=off"]
    missing = outside(python, empty, "-c", "from search.profile.bundled import bundled_model; bundled_model('pixart')")
    assert "ValueError: the bundled model 'pixart' is not installed" in missing.stderr
    install(python, str(models_wheel))
    done = outside(python, empty, *command, *small)
    assert done.returncode == 0, done.stderr[-3000:]
    assert list((empty / "runs").glob("*/schedules/*.json"))


@pytest.mark.slow
def test_beside_the_kernels_of_hugging_face(wheel: Path, clean: Path, tmp_path: Path) -> None:
    """From the root of a checkout, where our folder `kernels` comes first on the path, and elsewhere."""
    python = environment(tmp_path / "venv", str(wheel))
    (site,) = (tmp_path / "venv" / "lib").glob("python3*/site-packages")
    stub(site)
    for folder in (clean, tmp_path):
        assert run(python, folder, CLASHES) == "fine\n"
    (clean / "kernels" / "__init__.py").touch()  # the test can fail: with this file it does
    try:
        with pytest.raises(AssertionError, match=r"STUB|kernels|CUDAProperties"):
            run(python, clean, CLASHES)
    finally:
        (clean / "kernels" / "__init__.py").unlink()


def _nothing(folder: Path) -> Path:
    """An empty distribution, for an environment with nothing of ours."""
    source = folder / "nothing"
    source.mkdir()
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "nothing"\nversion = "0"\n[tool.setuptools]\npackages = []\n'
    )
    return source

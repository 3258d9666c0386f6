"""The same imports in every way of installing, also beside Hugging Face's `kernels`, and nothing left out."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

MAPPED = {"spaces", "objectives", "kernels", "conf"}  # stand at the root, belong to search
LOOK = (
    "import search.spaces.cache, search.objectives.drift, search.engines.random, search.kernels\n"
    "from search import Schedule\n"
    "print(search.__file__); print(search.spaces.cache.__file__); print(Schedule.__module__)"
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
    shutil.copytree(root, copy, ignore=ignore)
    return copy


@pytest.fixture(scope="session")
def wheel(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--wheel-dir",
        str(out),
        str(clean),
    ]
    done = subprocess.run([sys.executable, "-m", "pip", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (built,) = out.glob("*.whl")
    return built


def environment(folder: Path, *install: str) -> str:
    """A virtual environment that sees the packages of this one, with one thing more; returns its python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    (site,) = (folder / "lib").glob("python3*/site-packages")
    # Not --system-site-packages: that would bring an editable install of this environment along.
    (site / "outer.pth").write_text(f"{Path(pytest.__file__).parent.parent}\n")
    pip = [sys.executable, "-m", "pip", "--python", python, "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--no-deps", "--no-build-isolation", "--no-index", *install], check=True)
    return python


def run(python: str, folder: Path, code: str) -> str:
    done = subprocess.run(
        [python, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin"},
    )
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
    found = {"search"}
    for top in ("search", *sorted(MAPPED)):
        for file in (root / top).rglob("*.py"):
            parts = file.relative_to(root).parent.parts
            found.add(".".join(parts if top == "search" else ("search", *parts)))
    setuptools = project["tool"]["setuptools"]
    assert sorted(found | {"search.kernels"}) == setuptools["packages"]
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
    assert "no attribute 'Scedule'; public names are ['Schedule', 'ScheduleError']" in done.stdout


def test_version_is_told_once(project: dict[str, Any]) -> None:
    import search

    assert project["project"]["version"] == search.__version__


@pytest.mark.slow
def test_uninstalled(clean: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "venv", str(_nothing(tmp_path)))
    assert run(python, clean, LOOK).splitlines()[1] == str(clean / "spaces" / "cache.py")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "strict", "compat"])
def test_editable(clean: Path, tmp_path: Path, mode: str) -> None:
    settings = [] if mode == "default" else ["--config-settings", f"editable_mode={mode}"]
    python = environment(tmp_path / "venv", *settings, "-e", str(clean))
    for folder in (clean, tmp_path):
        assert run(python, folder, LOOK).splitlines()[2].startswith("search.schedule")


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
        kinds = (".py", ".cu", ".yaml", ".txt", ".html", ".css", ".js")
        files = [p for p in (clean / top).rglob("*") if p.suffix in kinds]
        prefix = "" if top == "search" else "search/"
        wanted |= {f"{prefix}{p.relative_to(clean)}" for p in files}
    assert wanted <= names, sorted(wanted - names)
    bundled = {str(p.relative_to(clean)) for p in (clean / "search/models/bundled").rglob("*") if p.is_file()}
    assert bundled <= names, sorted(bundled - names)
    assert any(name.endswith(".safetensors") for name in bundled), "the bundled checkpoint is missing"
    assert {name.split("/")[0].split("-")[0] for name in names} == {"search", "diffusion_schedule_search"}


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

"""Which classes a run folder may name: ours, and those in folders or packages that were named on this command line.

`_target_` names a class that is imported and called. What a user types is used as it is; a `config.yaml` may be of
somebody else, so nothing of it is imported or called before all of it was checked.
"""

import importlib
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from search.config.saved import walk

# Packages with classes of ours, and the base of those that a configuration may name, by the section they belong to.
OURS = {
    "space": ("search.spaces", "search.spaces.base.Space"),
    "engine": ("search.engines", "search.engines.base.Engine"),
    "objective": ("search.objectives", "search.objectives.base.Objective"),
    "guard": ("search.objectives", "search.objectives.base.Objective"),
    "model": ("search.models", "search.models.base.Model"),
}
TARGET = "_target_"


def check_classes(config: Mapping[str, Any], trusted: Sequence[str] = ()) -> None:
    """Check every class that a saved configuration names, also in arguments, before anything is made of it.

    Args:
        config: Nested plain data: `model`, `space`, `engine`, `objective` and `guard` of a `Config`.
        trusted: Folders (with a slash) and packages whose code the user trusts, besides ours.

    Raises:
        ValueError: A class is not ours, and its code is not trusted; or there is no such class. Names it, and says
            what to type.

    Example:
        >>> from search.config.trust import check_classes
        >>> check_classes({"engine": {"_target_": "search.engines.random.RandomEngine"}})
        >>> check_classes({"engine": {"_target_": "os.system"}})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: engine._target_=os.system: a run folder may name a class of ours (search.engines), or one whose ...
    """
    folders = [Path(name).expanduser().resolve() for name in trusted if is_folder(name)]
    packages = {name for name in trusted if not is_folder(name)}
    sys.path.extend(str(folder) for folder in folders if str(folder) not in sys.path)
    targets = list(_targets(config))
    for target in targets:  # all names first: nothing is imported for a configuration that is refused
        if not (target.package_of_ours or _is_trusted(target.name, folders, packages)):
            raise target.refusal()
    for target in targets:
        if target.package_of_ours:
            _check_class_of_ours(target)
        elif not _is_trusted(getattr(_resolve(target), "__module__", None) or "", folders, packages):
            raise target.refusal()


def check_storage(saved: Mapping[str, Any], typed: Mapping[str, Any]) -> None:
    """ValueError where a saved engine keeps its rows in a file or database that was not typed on this command line.

    Args:
        saved: The engine of a run folder.
        typed: The engine of the command line.
    """
    if (storage := saved.get("storage")) is not None and storage != typed.get("storage"):
        text = str(storage)[:200]
        raise ValueError(
            f"engine.storage={text}: a study that only a run folder names is not opened. If it is yours, "
            f"type engine=bayes engine.storage={text} beside resume="
        )


def is_folder(name: str) -> bool:
    """Whether a trusted name is a folder, which has a slash in it, and not a package."""
    return not name.isidentifier()


@dataclass(frozen=True)
class _Target:
    """A class that a configuration names; `component` where it is that of the space, engine, ... itself."""

    section: str
    place: str
    name: str
    component: bool

    @property
    def package_of_ours(self) -> str:
        """`search.spaces` for a class below it; empty for any other."""
        return next((package for package, _ in OURS.values() if self.name.startswith(f"{package}.")), "")

    def refusal(self) -> ValueError:
        """What is admissible, and what to type."""
        top, name, package = self.name.partition(".")[0], self.name[:200], OURS[self.section][0]
        if top == "search":
            return ValueError(
                f"{self.place}={name} is not a class that a run folder may name; of ours it may name those of "
                f"{package}. Start a new search with the options of python -m search --help"
            )
        return ValueError(
            f"{self.place}={name}: a run folder may name a class of ours ({package}), or one whose code you trust. If "
            "you do, type --config-dir <its folder>, trust=./<its folder> or "
            f"trust={top[:200] if top.isidentifier() else '<its package>'} beside resume="
        )


def _targets(config: Mapping[str, Any]) -> Iterator[_Target]:
    """Every `_target_`, with its dotted place."""
    for section in OURS:
        part, single = config.get(section, {}), section in ("engine", "model")
        for name, component in {section: part}.items() if single else part.items():
            if component.get("_partial_"):
                raise ValueError(
                    f"{section}._partial_ is set in {str(name)[:200]}; a run folder does not have it there"
                )
            for place, value in walk(component, section if single else f"{section}.{name}"):
                if isinstance(value, Mapping) and TARGET in value:
                    yield _Target(section, f"{place[:200]}.{TARGET}", str(value[TARGET]), value is component)


def _is_trusted(target: str, folders: Sequence[Path], packages: set[str]) -> bool:
    """Whether the module that a dotted name begins with is a trusted package, or lies directly in a trusted folder."""
    name = target.partition(".")[0]
    if not name.isidentifier():
        return False
    if name in packages:
        return True
    try:
        spec = find_spec(name) if folders else None  # of a name without dots: imports nothing
    except (ImportError, ValueError):
        return False
    if spec is None:
        return False
    # A package has folders, a module a file; what is built into Python has neither.
    places = list(spec.submodule_search_locations or ([spec.origin] if spec.has_location and spec.origin else []))
    return bool(places) and all(Path(place).resolve().parent in folders for place in places)


def _check_class_of_ours(target: _Target) -> None:
    """One level below a module, defined in it, and of the kind that its section has."""
    module, _, name = target.name.rpartition(".")
    try:
        named = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise target.refusal() from None
    bases = {base for package, base in OURS.values() if package == target.package_of_ours}
    is_one = inspect.isclass(named) and not inspect.isabstract(named) and named.__module__ == module
    is_one = is_one and any(f"{base.__module__}.{base.__qualname__}" in bases for base in named.__mro__)
    if not is_one or (target.component and OURS[target.section][0] != target.package_of_ours):
        raise target.refusal()


def _resolve(target: _Target) -> Any:
    """What a dotted name stands for; ValueError where there is no such thing."""
    parts = target.name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:count])
        try:
            named: Any = importlib.import_module(module)
            for name in parts[count:]:
                named = getattr(named, name)
            return named
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise ValueError(f"{target.place}={target.name}: {error}") from None
        except (ImportError, AttributeError) as error:
            raise ValueError(f"{target.place}={target.name}: {error}") from None
    raise ValueError(f"{target.place}={target.name}: there is no module {parts[0]}; put its folder on PYTHONPATH")

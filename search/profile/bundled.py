"""Where the bundled models are: in a checkout, or in the distribution `diffusion-schedule-search-models`.

They weigh 62 MB, so the wheel of the project does not have them; packages/bundled-models builds one that does.
"""

from importlib.util import find_spec
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent / "models" / "bundled"
PACKAGE = "diffusion_schedule_search_models"


def bundled_model(name: str, option: str = "model.path") -> Path:
    """The folder of the bundled model `name`, whether there is one of that name or not.

    `option` is what takes a path instead, for the error message.

    Raises:
        ValueError: where no bundled models are installed.
    """
    if CHECKOUT.is_dir():
        return CHECKOUT / name
    package = find_spec(PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise ValueError(
            f"the bundled model {name!r} is not installed: type pip install ./packages/bundled-models in a checkout of "
            f"the project, or {option}=<folder or hub id> for a model of your own"
        )
    return Path(next(iter(package.submodule_search_locations))) / name

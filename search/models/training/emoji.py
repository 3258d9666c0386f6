"""The captioned picture set: 64 emoji concepts x 3 drawing styles, composited on named backgrounds.

The drawings come from three npm packages (Noto: Apache-2.0, Fluent flat and Fluent 3D: MIT),
which `npm pack` fetches by name; nothing of them is stored in the repository.
"""

import io
import json
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

PACKAGES = {
    "noto": "@iconify-json/noto@1.2.9",
    "flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "3d": "@lobehub/fluent-emoji-3d@1.1.0",
}
STYLES = {"noto": "cartoon style", "flat": "flat style", "3d": "3d style"}
BACKGROUNDS = {
    "white": (1.0, 1.0, 1.0),
    "blue": (0.55, 0.75, 1.0),
    "yellow": (1.0, 0.9, 0.5),
    "pink": (1.0, 0.72, 0.8),
    "green": (0.68, 0.9, 0.66),
}
CONCEPTS = """
red-apple banana strawberry watermelon grapes pineapple tomato carrot hamburger pizza doughnut
cookie birthday-cake french-fries cat-face dog-face panda pig-face rabbit-face koala tiger-face lion
frog monkey-face penguin octopus tropical-fish whale snail butterfly lady-beetle honeybee cactus
palm-tree evergreen-tree tulip rose sunflower mushroom rainbow sun cloud snowflake fire rocket
airplane bus bicycle sailboat castle house umbrella balloon wrapped-gift trophy soccer-ball
basketball drum guitar light-bulb key hammer crown camera
""".split()
SIZE = 64


@dataclass(frozen=True)
class EmojiSet:
    """`rgba` is uint8 [N, 64, 64, 4] with premultiplied alpha; `name` and `style` have length N."""

    rgba: np.ndarray
    name: tuple[str, ...]
    style: tuple[str, ...]

    def composite(self, index: torch.Tensor, background: torch.Tensor) -> torch.Tensor:
        """Pictures [B, 3, 64, 64] in [-1, 1]; `background` indexes BACKGROUNDS, shape [B]."""
        rgba = torch.from_numpy(self.rgba)[index].float() / 255
        colour = torch.tensor(list(BACKGROUNDS.values()))[background][:, None, None]
        rgb = rgba[..., :3] + (1 - rgba[..., 3:]) * colour
        return rgb.clamp(0, 1).permute(0, 3, 1, 2) * 2 - 1


def caption(name: str, style: str = "", background: str = "") -> str:
    """`red apple, 3d style, pink background`; empty parts are left out."""
    parts = [name.replace("-", " "), STYLES.get(style, ""), background and f"{background} background"]
    return ", ".join(part for part in parts if part)


def load(cache: Path) -> EmojiSet:
    """Read the rendered set from `cache`/emoji.npz, rendering it first where it is missing."""
    file = cache / "emoji.npz"
    if not file.exists():
        _render(cache, file)
    with np.load(file) as data:
        return EmojiSet(data["rgba"], tuple(data["name"].tolist()), tuple(data["style"].tolist()))


def _render(cache: Path, file: Path) -> None:
    folders = {style: _fetch(package, cache) for style, package in PACKAGES.items()}
    rows: list[tuple[np.ndarray, str, str]] = []
    icons = {s: json.loads((folders[s] / "icons.json").read_text()) for s in ("noto", "flat")}
    codes: dict[str, list[str]] = {}
    for code, name in json.loads((folders["noto"] / "chars.json").read_text()).items():
        codes.setdefault(name, []).append(code)
    webp = {path.stem: path for path in (folders["3d"] / "assets").glob("*.webp")}
    for name in CONCEPTS:
        for style, icon_set in icons.items():
            if drawing := _svg(icon_set, name):
                rows.append((_fit(_rasterise(drawing)), name, style))
        spellings = [s for c in codes.get(name, []) for s in (c, f"{c}-fe0f", c.replace("-fe0f", ""))]
        if spelling := next((s for s in spellings if s in webp), None):
            rows.append((_fit(Image.open(webp[spelling]).convert("RGBA")), name, "3d"))
    rgba, names, styles = zip(*rows, strict=True)
    np.savez_compressed(file, rgba=np.stack(rgba), name=np.array(names), style=np.array(styles))


def _fetch(package: str, cache: Path) -> Path:
    name = package.rsplit("@", 1)[0].strip("@").replace("/", "-")
    folder = cache / name
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["npm", "pack", "--silent", package], cwd=cache, check=True, capture_output=True, text=True
        )
        with tarfile.open(cache / done.stdout.split()[-1]) as archive:
            archive.extractall(folder, filter="data")
    return folder / "package"


def _svg(icon_set: dict[str, Any], name: str) -> str | None:
    icon = icon_set["icons"].get(name)
    if icon is None:
        alias = icon_set.get("aliases", {}).get(name, {})
        return _svg(icon_set, alias["parent"]) if "parent" in alias else None
    width, height = (icon.get(k, icon_set.get(k, 16)) for k in ("width", "height"))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}" width="{width}" height="{height}">{icon["body"]}</svg>'
    )


def _rasterise(svg: str) -> Image.Image:
    import resvg_py

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=4 * SIZE, skip_system_fonts=True))
    return Image.open(io.BytesIO(png)).convert("RGBA")


def _fit(image: Image.Image) -> np.ndarray:
    """Crop to the visible box, pad to a square with a 5 % margin, downscale premultiplied."""
    box = image.getchannel("A").point(lambda v: 255 if v > 8 else 0).getbbox()
    image = image.crop(box)
    side = int(max(image.size) * 1.10)
    square = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    rgba = np.asarray(square).astype(np.float32) / 255
    rgba[..., :3] *= rgba[..., 3:]
    planes = [Image.fromarray(rgba[..., c]).resize((SIZE, SIZE), Image.Resampling.LANCZOS) for c in range(4)]
    levels = np.clip(np.stack([np.asarray(p) for p in planes], -1), 0, 1) * 255 + 0.5
    picture: np.ndarray = levels.astype(np.uint8)
    return picture

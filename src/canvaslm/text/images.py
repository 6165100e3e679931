"""Pictures as they come -> pixels as the model reads them. Nothing is fetched, and memory is bounded: sizes
are checked before anything is decoded.

A picture is turned upright (EXIF), laid on white where it is transparent, scaled to the largest grid of cells
of 48 x 48 pixels that its budget of soft tokens holds (small ones are enlarged), bicubic as Pillow does it.
Source: transformers' `image_processing_pil_gemma4.py`.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from ..errors import UsageError

if TYPE_CHECKING:
    import numpy as np

BUDGETS = (70, 140, 280, 560, 1120)  # soft tokens a picture may take
CELL = 48  # pixels a side of what becomes one soft token
# EPS would run a PostScript interpreter, TIFF and SVG bring readers of their own: they are not opened.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_BYTES = 20 << 20
MAX_PIXELS = 50_000_000
MAX_SIDE = 30_000


@dataclass(frozen=True)
class Picture:
    """pixels uint8 [rows * CELL, columns * CELL, 3]; `digest` names what is seen, budget included; `notes`
    say what was done to it."""

    pixels: np.ndarray[Any, np.dtype[np.uint8]]
    digest: bytes
    width: int  # as it came, upright
    height: int
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Of soft tokens."""
        return int(self.pixels.shape[0]) // CELL

    @property
    def columns(self) -> int:
        return int(self.pixels.shape[1]) // CELL

    @property
    def tokens(self) -> int:
        return self.rows * self.columns

    def text(self) -> str:
        """What was made of it, in a line."""
        height, width = self.pixels.shape[:2]
        done = f"{self.width} x {self.height} pixels, read as {width} x {height}"
        return "; ".join([f"{done}: {self.columns} x {self.rows} = {self.tokens} tokens", *self.notes])


def grid_of(height: int, width: int, budget: int) -> tuple[int, int]:
    """(rows, columns) of soft tokens for a picture of height x width pixels: as many as the budget holds at
    about its proportions, and at least one each way. Raises UsageError for a budget that is none."""
    if budget not in BUDGETS:
        named = ", ".join(map(str, BUDGETS))
        raise UsageError(f"image tokens: {budget} is not one of {named}", param="image_tokens")
    scale = math.sqrt(budget * CELL**2 / (height * width))
    rows, columns = math.floor(scale * height / CELL), math.floor(scale * width / CELL)
    if rows == 0:
        return 1, min(width // height, budget)
    if columns == 0:
        return min(height // width, budget), 1
    return rows, columns


def read_picture(data: bytes, budget: int = 280, where: str = "image") -> Picture:
    """An encoded picture. `where` names it in errors. Raises UsageError for what is no picture, is broken, or
    is too large."""
    if len(data) > MAX_BYTES:
        raise UsageError(
            f"{where}: {len(data):,} bytes are more than {MAX_BYTES:,}; send a smaller picture",
            param="images",
        )
    image, notes = _opened(data, where)
    upright, more = _as_rgb(image)
    return picture_of(upright, budget, (*notes, *more))


def picture_of(image: Any, budget: int, notes: tuple[str, ...] = ()) -> Picture:
    """Of an RGB image of Pillow's."""
    import numpy as np
    from PIL import Image

    rows, columns = grid_of(image.height, image.width, budget)
    resized = image.resize((columns * CELL, rows * CELL), Image.Resampling.BICUBIC)
    pixels = np.asarray(resized, dtype=np.uint8)
    named = hashlib.sha256(f"{rows} {columns} ".encode() + pixels.tobytes()).digest()
    return Picture(pixels, named, image.width, image.height, notes)


def _opened(data: bytes, where: str) -> tuple[Any, list[str]]:
    """A decoded image of one of `FORMATS`, and notes."""
    from PIL import Image

    kinds = ", ".join(FORMATS)
    # Pillow warns of sizes that are refused right below, and warns of them alone.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    try:
        image: Any = Image.open(BytesIO(data), formats=FORMATS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, Image.DecompressionBombError):
            raise _too_large(where, str(error)) from None
        raise UsageError(f"{where}: not a picture of a known kind ({kinds})", param="images") from None
    width, height = image.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise _too_large(where, f"{width} x {height} pixels")
    notes = ["the first of its frames"] if getattr(image, "n_frames", 1) > 1 else []
    try:
        image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UsageError(f"{where}: the picture is broken: {error!s:.200}", param="images") from None
    return image, notes


def _too_large(where: str, found: str) -> UsageError:
    return UsageError(
        f"{where}: {found}: more than {MAX_PIXELS:,} pixels or {MAX_SIDE:,} a side; make it smaller",
        param="images",
    )


def _as_rgb(image: Any) -> tuple[Any, list[str]]:
    """Upright, RGB, on white; and notes."""
    from PIL import Image, ImageOps

    notes = []
    try:
        upright = ImageOps.exif_transpose(image)
    except (OSError, ValueError, SyntaxError, TypeError, ZeroDivisionError):
        upright = image  # what turns it is broken, not the picture
        notes.append("its EXIF data are broken and were ignored")
    if upright.mode.startswith("I"):  # 16 bits a pixel, which `convert` would clip to white
        return upright.convert("I").point(lambda value: value * (1 / 257)).convert("L").convert("RGB"), notes
    if upright.has_transparency_data:
        clear = upright.convert("RGBA")
        white = Image.new("RGBA", clear.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, clear).convert("RGB"), [*notes, "laid on white"]
    return upright.convert("RGB"), notes


def patches_of(picture: Picture, patch: int = 16) -> np.ndarray[Any, np.dtype[np.float32]]:
    """fp32 [n, 3 patch^2] in 0 .. 1: patches row by row, each laid out (row, column, channel)."""
    import numpy as np

    rows, columns = picture.pixels.shape[0] // patch, picture.pixels.shape[1] // patch
    cut = picture.pixels.reshape(rows, patch, columns, patch, 3).swapaxes(1, 2).reshape(rows * columns, -1)
    return cut.astype(np.float32) * np.float32(1 / 255)


__all__ = ["BUDGETS", "CELL", "Picture", "grid_of", "patches_of", "picture_of", "read_picture"]

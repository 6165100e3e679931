"""Pictures: sizes and pixels of the reference, odd files, and hostile ones, which end as one error."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from canvaslm.errors import UsageError
from canvaslm.text.images import BUDGETS, CELL, grid_of, patches_of, picture_of, read_picture

FIXTURES = Path(os.environ.get("CANVASLM_FIXTURES", "")) / "vision"
needs_files = pytest.mark.skipif(
    not (os.environ.get("CANVASLM_FIXTURES") and FIXTURES.is_dir()),
    reason="CANVASLM_FIXTURES names no folder with pictures",
)


def file(name: str) -> bytes:
    return (FIXTURES / name).read_bytes()


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


@needs_files
def test_sizes_are_those_of_the_reference() -> None:
    rows = json.loads(file("sizes.json"))["rows"]
    assert len(rows) > 20
    for height, width, budget, tall, wide, tokens in rows:
        cells = grid_of(height, width, budget)
        assert (cells[0] * CELL, cells[1] * CELL, cells[0] * cells[1]) == (tall, wide, tokens)


@needs_files
@pytest.mark.parametrize("budget", [70, 280])
def test_pixels_are_those_of_the_reference(budget: int) -> None:
    golden = json.loads(file("golden.json"))
    want = golden["budgets"][str(budget)]
    got = read_picture(file(golden["file"]), budget)
    assert [*got.pixels.shape] == [*want["size"], 3]
    assert got.tokens == want["tokens"]
    assert hashlib.sha256(got.pixels.tobytes()).hexdigest() == want["sha256_of_resized_rgb_bytes"]


def test_grids_hold_their_budget() -> None:
    for budget in BUDGETS:
        for size in ((1, 1), (64, 64), (3000, 17), (17, 3000), (1080, 1920)):
            rows, columns = grid_of(*size, budget)
            assert 1 <= rows * columns <= budget
    assert grid_of(64, 64, 280) == (16, 16)  # small pictures are enlarged
    with pytest.raises(UsageError, match="100 is not one of 70, 140"):
        grid_of(64, 64, 100)


def test_patches_are_cut_row_by_row_with_channels_last() -> None:
    shade = np.zeros((60, 90, 3), np.uint8)
    shade[..., 0], shade[..., 2] = np.arange(90), 255
    picture = picture_of(Image.fromarray(shade), 70)
    cut = patches_of(picture)
    assert cut.shape == (9 * picture.tokens, 16 * 16 * 3)
    wide = picture.columns * 3
    second_row = picture.pixels[16:32, 32:48].reshape(-1).astype(np.float32) / 255
    np.testing.assert_allclose(cut[wide + 2], second_row, atol=1e-7)
    assert cut.max() == 1


@needs_files
def test_odd_files_are_read_as_they_are_meant() -> None:
    def at(name: str) -> list[int]:
        picture = read_picture(file(name), 70)
        return [int(v) for v in picture.pixels[picture.pixels.shape[0] // 2, picture.pixels.shape[1] // 2]]

    red, green, blue = at("cmyk-red.jpg")
    assert red > 200
    assert max(green, blue) < 60
    assert all(abs(value - 40000 / 257) <= 1 for value in at("gray16-40000.png"))
    clear = read_picture(file("transparent-red.png"), 70)
    assert "laid on white" in clear.text()
    for name in ("animated-red-green-blue.gif", "animated-red-green-blue.webp"):
        moving = read_picture(file(name), 70)
        assert "first of its frames" in moving.text()
        assert at(name)[0] > 200
    turned = read_picture(file("exif-rotate-6.jpg"), 70)
    lying = Image.open(io.BytesIO(file("exif-rotate-6.jpg")))
    assert (turned.width, turned.height) == (lying.height, lying.width)


@needs_files
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("bomb-12000x12000-1bit.png", "more than 50,000,000 pixels"),
        ("bomb-header-2147483647.png", "image 2"),
        ("header-9000x9000-no-data.png", "more than 50,000,000 pixels"),
        ("picture.svg", "not a picture of a known kind"),
        ("postscript.eps.jpg", "not a picture of a known kind"),
        ("playlist.m3u8.mp4", "not a picture of a known kind"),
        ("truncated.jpg", "the picture is broken"),
        ("truncated.png", "the picture is broken"),
    ],
)
def test_hostile_files_are_one_error(name: str, told: str) -> None:
    with pytest.raises(UsageError, match="image 2: ") as caught:
        read_picture(file(name), where="image 2")
    assert told in str(caught.value)


def test_what_is_too_large_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("canvaslm.text.images.MAX_BYTES", 100)
    with pytest.raises(UsageError, match="are more than 100"):
        read_picture(bytes(101))
    monkeypatch.undo()
    with pytest.raises(UsageError, match="30,000 a side"):
        read_picture(encoded(Image.new("1", (30_001, 1))))
    with pytest.raises(UsageError, match="not a picture"):
        read_picture(b"")


def test_a_digest_names_what_is_seen() -> None:
    plain, other = Image.new("RGB", (50, 50), "red"), Image.new("RGB", (50, 50), "blue")
    seen = read_picture(encoded(plain))
    assert seen.digest == read_picture(encoded(plain, "BMP")).digest
    assert seen.digest != read_picture(encoded(other)).digest
    assert seen.digest != read_picture(encoded(plain), 70).digest
    assert seen.text().startswith("50 x 50 pixels, read as 768 x 768: 16 x 16 = 256 tokens")

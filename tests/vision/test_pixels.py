"""Every kind of pixel that Pillow reads, as a person sees it or refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from un.vision.pixels import decode_image

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)
RAMP = np.linspace(0, 65535, 4096).round().astype(np.uint16).reshape(64, 64)


def write(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return {"bytes": file.getvalue(), "path": None}


def list_pixels(file, mode="RGB"):
    pixels = np.asarray(decode_image(file, mode))
    return [tuple(pixel) if mode == "RGB" else int(pixel) for pixel in pixels.reshape(-1, *pixels.shape[2:]).tolist()]


def write_grey_png(depth, levels, transparent):
    """One row, with a level for transparent, which Pillow does not write with 16 bits."""
    row = b"\0" + b"".join(level.to_bytes(depth // 8) for level in levels)
    header = struct.pack(">IIBBBBB", len(levels), 1, depth, 0, 0, 0, 0)
    chunks = {b"IHDR": header, b"tRNS": struct.pack(">H", transparent), b"IDAT": zlib.compress(row), b"IEND": b""}
    parts = [struct.pack(">I", len(v)) + k + v + struct.pack(">I", zlib.crc32(k + v)) for k, v in chunks.items()]
    return {"bytes": b"\x89PNG\r\n\x1a\n" + b"".join(parts), "path": None}


@pytest.mark.parametrize(
    ("kind", "type_"), [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2"), ("PPM", "<u2"), ("JPEG2000", "<u2")]
)
def test_sixteen_bits_keep_their_range(kind, type_):
    pixels = np.asarray(decode_image(write(Image.fromarray(RAMP.astype(type_)), kind), "L"))
    assert np.abs(pixels - RAMP / 257).max() <= 0.5


def test_sixteen_bits_that_count_from_white():
    file = write(Image.fromarray(np.array([[0, 257, 65535]], np.uint16)), "TIFF", tiffinfo={262: 0})
    assert list_pixels(file, "L") == [255, 254, 0]


def test_numbers_without_a_range_and_empty_cells_are_refused():
    for type_ in (np.int32, np.float32):
        with pytest.raises(ValueError, match="of unknown range; save it with 8 or 16 bits"):
            decode_image(write(Image.fromarray(RAMP.astype(type_)), "TIFF"), "RGB")
    with pytest.raises(ValueError, match="the cell is empty"):
        decode_image(None, "RGB")


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (Image.new("1", (1, 1), 1), "PNG", WHITE),
        (Image.new("L", (1, 1), 7), "PNG", (7, 7, 7)),
        (Image.new("RGB", (1, 1), RED).quantize(2), "PNG", RED),
        (Image.new("LA", (1, 1), (7, 0)), "PNG", WHITE),
        (Image.new("RGBA", (1, 1), (*RED, 0)), "PNG", WHITE),
        (Image.new("RGBA", (1, 1), (0, 0, 0, 51)), "WEBP", (204, 204, 204)),
        (Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF", RED),
        (Image.new("CMYK", (16, 16), (0, 0, 0, 0)), "JPEG", WHITE),
        (Image.new("YCbCr", (1, 1), (255, 128, 128)), "TIFF", WHITE),
    ],
)
def test_modes(image, kind, expected):
    options = {"lossless": True} if kind == "WEBP" else {}
    file = write(image, kind, **options)
    assert all(np.abs(np.subtract(pixel, expected)).max() <= 1 for pixel in list_pixels(file))
    grey = np.dot(expected, [0.299, 0.587, 0.114])
    assert all(abs(level - grey) <= 1 for level in list_pixels(file, "L"))


def test_transparent_colours_show_what_is_behind():
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *BLUE])
    palette.putpixel((1, 0), 1)
    for options in ({"transparency": 0}, {"transparency": b"\0\xff"}):
        assert list_pixels(write(palette, "PNG", **options)) == [WHITE, BLUE]
    assert list_pixels(write(palette, "GIF", transparency=0)) == [WHITE, BLUE]
    assert list_pixels(write(palette, "PNG")) == [RED, BLUE]
    coloured = Image.new("RGB", (1, 1), RED)
    assert list_pixels(write(coloured, "PNG", transparency=RED)) == [WHITE]
    assert list_pixels(write_grey_png(8, [7, 8], 7), "L") == [255, 8]
    assert list_pixels(write_grey_png(16, [300, 301], 300), "L") == [255, 1]


@pytest.mark.parametrize(("kind", "type_"), [("PNG", np.uint8), ("TIFF", np.uint16)])
def test_turned_by_exif(kind, type_):
    """Orientation 6: what is stored on top belongs to the right."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.array([[0, 1], [2, 3]], type_) * (1 if type_ is np.uint8 else 257)
    assert list_pixels(write(Image.fromarray(stored), kind, exif=exif), "L") == [2, 0, 3, 1]


def test_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
    for kind in ("GIF", "TIFF", "PNG"):
        assert set(list_pixels(write(frames[0], kind, save_all=True, append_images=frames[1:]))) == {RED}

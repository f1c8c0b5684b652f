"""Pixels as a person sees them: 8 bits a channel, upright, and on white where they are transparent."""

from typing import Any

import datasets
import numpy as np
from PIL import Image

SIXTEEN_BITS = 2**16 - 1
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # tag of TIFF 6.0 and its value for grey levels that count from white
SCALELESS = {"I": "32-bit integers", "F": "floating-point numbers"}  # modes of Pillow


def decode_image(file: dict[str, Any] | None, mode: str) -> Image.Image:
    """Decodes a file, of several frames the first.

    Colour profiles are ignored, as everywhere in the field. The white behind transparent pixels is ours;
    without it, whatever colour they hide would show.

    The file is given by its `bytes` or its `path`, as `datasets.Image(decode=False)` does. `mode` is L or RGB.

    Raises:
        ValueError: where there is no image, or one whose numbers do not say what is black and what is white.
        Exception: any of Pillow's, for a file that is damaged or not an image.
    """
    if file is None:
        raise ValueError("the cell is empty")
    return convert_image(datasets.Image().decode_example(file), mode)  # turned upright by its EXIF tag


def convert_image(image: Image.Image, mode: str) -> Image.Image:
    """Returns an open image in mode L or RGB; see `decode_image`."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        image = scale_sixteen_bits(image)
    if image.mode in SCALELESS:
        raise ValueError(f"its pixels are {SCALELESS[image.mode]}, of unknown range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode not in ("1", "L"):
        image = image.convert("RGB")  # from which Pillow converts to every mode
    return image.convert(mode)


def scale_sixteen_bits(image: Image.Image) -> Image.Image:
    """Returns grey levels of 0 to 65,535, which Pillow would cut off at 255, on the scale 0 to 255."""
    levels = np.asarray(image).astype(np.int64)
    transparent = levels == image.info["transparency"] if "transparency" in image.info else None
    if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO:  # which Pillow heeds only with 8 bits
        levels = SIXTEEN_BITS - levels
    scaled = Image.fromarray(np.round(levels * (255 / SIXTEEN_BITS)).astype(np.uint8))
    if transparent is not None:
        scaled.putalpha(Image.fromarray(np.where(transparent, 0, 255).astype(np.uint8)))
    return scaled

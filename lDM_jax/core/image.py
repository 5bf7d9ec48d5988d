"""The only conversion between uint8 pixels and [-1, 1]; resampling, grids, files.

Owns PIL, for reading and writing, and the request that every written PNG carries in its
text chunk `lDM_jax`, from which the same picture can be made again. Imports no jax.
"""

import contextlib
import io
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import (
    Image,
    ImageDraw,
    ImageFont,
    ImageOps,
    PngImagePlugin,
    UnidentifiedImageError,
)

from lDM_jax.core.files import replacing

REQUEST_KEY = "lDM_jax"
READABLE = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
LOSSY_SUFFIXES = (".jpg", ".jpeg", ".webp")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
RESAMPLING = {
    name: Image.Resampling[name.upper()]
    for name in ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
}
MAX_PIXELS = 2**27  # 134 megapixels, 0.5 GB decoded; larger than any camera's picture


def to_float(pixels: np.ndarray) -> np.ndarray:
    """uint8 [0, 255] -> f32 [-1, 1]: x / 127.5 - 1 (the original's scaling)."""
    x = np.divide(pixels, np.float32(127.5), dtype=np.float32)
    x -= np.float32(1.0)
    return x


def to_uint8(x: np.ndarray) -> np.ndarray:
    """f32 [-1, 1] -> uint8: clip((x + 1) * 127.5, 0, 255), rounded to nearest."""
    x = np.asarray(x, np.float32)
    return np.clip(np.rint((x + 1.0) * 127.5), 0, 255).astype(np.uint8)


def decode(
    data: bytes, *, alpha: bool = True, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """The bytes of an image file -> uint8 "H W 4" (RGBA), upright, its first frame.

    CMYK, palettes and gray become RGBA, 16 bits become the nearest of 8, and the EXIF
    orientation is applied. With `alpha` False a picture that has no transparency is
    "H W 3". Raises ValueError, in words that follow the name of the file, for what is
    damaged, cut short, of another format than `READABLE`, or of more than max_pixels;
    that is seen in the header, before any pixel is decoded.
    """
    with _opened(data, max_pixels) as picture:
        ImageOps.exif_transpose(picture, in_place=True)
        upright = picture
        if upright.mode.startswith("I"):  # PIL's own conversion clips at 255
            gray = np.asarray(upright).astype(np.int64).clip(0, 65535)
            upright = Image.fromarray(((gray + 128) // 257).astype(np.uint8))
        clear = alpha or upright.has_transparency_data
        mode = "RGBA" if clear else "RGB"
        return np.asarray(upright if upright.mode == mode else upright.convert(mode))


def decode_map(data: bytes) -> np.ndarray:
    """The bytes of a label map -> i32 "H W": the values of a gray or palette image.

    A palette's indices count, not its colors. Raises ValueError as `decode`, and for a
    color image.
    """
    with _opened(data) as picture:
        if picture.mode in ("1", "L", "P") or picture.mode.startswith("I"):
            return np.asarray(picture).astype(np.int32)
        pixels = np.asarray(picture.convert("RGB"))
    if (pixels != pixels[:, :, :1]).any():
        raise ValueError("is in color: a label map is gray or has a palette")
    return pixels[:, :, 0].astype(np.int32)


@contextlib.contextmanager
def _opened(data: bytes, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """PIL's picture, refused by its extent before it is decoded; errors as `decode`."""
    try:
        with Image.open(io.BytesIO(data), formats=READABLE) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                raise ValueError(f"{width} x {height} exceeds {max_pixels} pixels")
            yield picture
    except UnidentifiedImageError:
        raise ValueError(f"is no image of {', '.join(READABLE)}") from None
    except Exception as error:  # PIL's readers raise almost anything on damaged files
        raise ValueError(f"cannot be decoded: {error}") from None


def resized_crop(
    pixels: np.ndarray,
    extent: tuple[int, int],
    corner: tuple[int, int],
    size_px: int,
    *,
    method: str = "bicubic",
) -> np.ndarray:
    """The square at `corner` (top, left) of the picture resized to `extent` (H', W').

    uint8 "H W c" -> uint8 "size_px size_px c"; only the square is computed. method: one
    of RESAMPLING, or "linear": linear interpolation without antialiasing, as OpenCV's
    INTER_LINEAR.
    """
    height, width = pixels.shape[:2]
    scales = np.array([width / extent[1], height / extent[0]] * 2)
    top, left = corner
    box = scales * (left, top, left + size_px, top + size_px)
    box = tuple(np.minimum(box, [width, height] * 2).tolist())
    if method == "linear":
        return _interpolated(pixels, box, size_px)
    picture = Image.fromarray(pixels).resize((size_px,) * 2, RESAMPLING[method], box)
    return np.asarray(picture)


def _interpolated(pixels: np.ndarray, box: tuple, size_px: int) -> np.ndarray:
    """Linear interpolation at the middles of size_px x size_px cells of a box."""
    left, top, right, bottom = box
    middle = (np.arange(size_px) + 0.5) / size_px
    (above, below, down), (before, after, along) = (
        _neighbors(start + (end - start) * middle - 0.5, extent)
        for start, end, extent in (
            (top, bottom, pixels.shape[0]),
            (left, right, pixels.shape[1]),
        )
    )

    def row(rows: np.ndarray) -> np.ndarray:
        first, second = (
            _premultiplied(pixels[np.ix_(rows, columns)]) for columns in (before, after)
        )
        return first + along[None, :, None] * (second - first)

    upper = row(above)
    x = upper + down[:, None, None] * (row(below) - upper)
    if pixels.shape[2] == 4:
        x[:, :, :3] *= 255.0 / np.maximum(x[:, :, 3:], 1e-6)
    return np.rint(x.clip(0, 255)).astype(np.uint8)


def _neighbors(at: np.ndarray, extent: int) -> tuple[np.ndarray, ...]:
    """(index before, index after, weight of the latter); the border is repeated."""
    first = np.floor(at).astype(int)
    weight = (at - first).astype(np.float32)
    return first.clip(0, extent - 1), (first + 1).clip(0, extent - 1), weight


def _premultiplied(pixels: np.ndarray) -> np.ndarray:
    """f32, the colors of RGBA weighted by their alpha."""
    x = pixels.astype(np.float32)
    if x.shape[2] == 4:
        x[:, :, :3] *= x[:, :, 3:] / 255.0
    return x


def crop_square(pixels: np.ndarray) -> np.ndarray:
    """uint8 "H W c" -> its central "S S c", S = min(H, W); a view."""
    height, width, _ = pixels.shape
    size = min(height, width)
    top, left = (height - size) // 2, (width - size) // 2
    return pixels[top : top + size, left : left + size]


def resize(pixels: np.ndarray, size_px: int) -> np.ndarray:
    """uint8 "H W c" -> uint8 "size_px size_px c", antialiased bicubic as PIL's."""
    return resample(pixels, size_px, size_px)


def resample(
    pixels: np.ndarray, height: int, width: int, *, method: str = "bicubic"
) -> np.ndarray:
    """uint8 "H W c" -> uint8 "height width c" by one of PIL's RESAMPLING methods.

    All but "nearest" are antialiased; RGBA is weighted by its alpha. Raises KeyError
    for another method.
    """
    return np.asarray(
        Image.fromarray(pixels).resize((width, height), RESAMPLING[method])
    )


def nearest(values: np.ndarray, extent: tuple[int, int]) -> np.ndarray:
    """Values "h w ..." at another extent (H, W), each pixel from its nearest.

    The middle of pixel i of n lies at (i + 1/2) / n of the side, so that it takes the
    value of pixel floor((i + 1/2) m / n) of m: computed in integers, exactly.
    """
    rows, columns = (
        (2 * np.arange(side) + 1) * old // (2 * side)
        for side, old in zip(extent, values.shape[:2], strict=True)
    )
    return values[np.ix_(rows, columns)]


def jpeg(pixels: np.ndarray, *, quality: int) -> np.ndarray:
    """uint8 "H W 3" -> the same after JPEG of that quality (1 to 95), color at half.

    Color at half the extent (4:2:0) is what libjpeg does unless told otherwise.
    """
    file = io.BytesIO(jpeg_bytes(pixels, quality=quality))
    with Image.open(file, formats=("JPEG",)) as picture:
        return np.asarray(picture)


def jpeg_bytes(pixels: np.ndarray, *, quality: int) -> bytes:
    """A JPEG file of uint8 "H W 3", as `jpeg` reads it."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return file.getvalue()


def text_strip(text: str, width: int, height: int) -> np.ndarray:
    """Black text on white, uint8 "height width 3", in as many lines as fit."""
    strip = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(strip), ImageFont.load_default(11)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if pen.textlength(longer, font) > width - 4 and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    pen.multiline_text((2, 1), "\n".join(lines), fill="black", font=font, spacing=2)
    return np.asarray(strip)


def grid(images: np.ndarray, *, columns: int | None = None) -> np.ndarray:
    """uint8 "n H W 3" -> one uint8 picture, row-major, with 2 px of white between."""
    images = np.asarray(images)
    count, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows, gap = math.ceil(count / columns), 2
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, channels)
    sheet = np.full(shape, 255, np.uint8)
    for index, picture in enumerate(images):
        top = (index // columns) * (height + gap)
        left = (index % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    return sheet


def write_png(
    path: str | os.PathLike, pixels: np.ndarray, *, request: dict | None = None
) -> None:
    """Write uint8 "H W 3" atomically; `request` goes into the file as JSON text.

    Raises OSError when the folder is missing, not writable or the disk is full; then
    no half-written file is left.
    """
    with replacing(path) as partial:
        save_png(partial, pixels, request=request)


def save_png(
    file: BinaryIO | os.PathLike, pixels: np.ndarray, *, request: dict | None = None
) -> None:
    """uint8 "H W 3" or gray "H W" as PNG into an open file or at a path."""
    info = PngImagePlugin.PngInfo()
    if request is not None:
        info.add_text(REQUEST_KEY, json.dumps(request, sort_keys=True))
    Image.fromarray(pixels).save(file, format="PNG", pnginfo=info)


def write_animation(
    path: str | os.PathLike, frames: Sequence[np.ndarray], *, frame_ms: int = 80
) -> None:
    """Write uint8 "H W 3" frames atomically as .gif, .webp or .png (APNG), endless.

    The last frame stays twenty times as long. ValueError for another ending.
    """
    path = Path(path)
    formats = {".gif": "GIF", ".webp": "WEBP", ".png": "PNG"}
    if path.suffix.lower() not in formats:
        raise ValueError(f"{path.name}: give a name that ends in {', '.join(formats)}")
    first, *rest = [Image.fromarray(np.asarray(frame)) for frame in frames]
    durations = [frame_ms] * len(rest) + [20 * frame_ms]
    kind = formats[path.suffix.lower()]
    options = {"lossless": True} if kind == "WEBP" else {}
    options |= {"save_all": True, "append_images": rest, "duration": durations}
    with replacing(path) as partial:
        first.save(partial, format=kind, loop=0, **options)


def read_request(path: str | os.PathLike) -> dict | None:
    """The request that `write_png` stored in the file, or None."""
    with Image.open(path) as picture:
        text = getattr(picture, "text", {}).get(REQUEST_KEY)
    return None if text is None else json.loads(text)


def stored_text(data: bytes) -> str | None:
    """The text of the request in the bytes of a PNG, or None; no pixel is decoded.

    Raises ValueError as `decode` for what is not an image.
    """
    with _opened(data) as picture:
        return getattr(picture, "text", {}).get(REQUEST_KEY)

"""From an image file to pixels, by Pillow: three formats, bounded pixels, nothing else.

A decoder of our own would be worse than one that half the world fuzzes; what it can still do wrong
happens in a worker without files, network or privilege.
"""

from __future__ import annotations

import io
from types import ModuleType
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

import numpy as np

from edgefleet_shared.errors import IncompatibleError, InvalidInputError
from edgefleet_shared.processing import MAX_SIDE, DecodeImage, Frame, Resize

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS: Final = ("JPEG", "PNG", "WEBP")
_MODES: Final = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})


class Geometry(NamedTuple):
    """Where a point of the model's image lies in the image that came in.

    x in the original is (x - left) * scale_x, and so for y. Sizes are pixels: of the original, and
    of what the model sees.
    """

    width: int
    height: int
    seen_width: int
    seen_height: int
    scale_x: float = 1.0
    scale_y: float = 1.0
    left: float = 0.0
    top: float = 0.0

    def then(self, scale_x: float, scale_y: float, left: float, top: float) -> Geometry:
        """Return the geometry after one more resize, given as for the image before it."""
        return self._replace(
            scale_x=self.scale_x * scale_x, scale_y=self.scale_y * scale_y,
            left=left + self.left / scale_x, top=top + self.top / scale_y,
        )  # fmt: skip


def load() -> ModuleType:
    """Import Pillow with all that its three decoders will ever import; return PIL.Image.

    Called first before the sandbox hides Pillow's files, which may lie anywhere on `sys.path`.

    Raises:
        IncompatibleError: It is not installed (code `unsupported_processing`).
    """
    try:
        from PIL import (
            Image,
            JpegImagePlugin,
            MpoImagePlugin,
            PngImagePlugin,
            TiffImagePlugin,
            WebPImagePlugin,
        )
    except ImportError as error:
        raise IncompatibleError(
            f"The package decodes or resizes images, and this device cannot: {error}.",
            code="unsupported_processing",
            hint="Install the agent's extra edgefleet-agent[vision].",
        ) from error
    del JpegImagePlugin, PngImagePlugin, WebPImagePlugin  # importing them registers them
    del MpoImagePlugin, TiffImagePlugin  # a JPEG may hold several, and its EXIF is a small TIFF
    Image.preinit()  # what `open` and `save` would import
    Image.MAX_IMAGE_PIXELS = None  # `decode` is stricter, and says so in an answer
    return Image


def decode(data: bytes, step: DecodeImage) -> Image:
    """Return the image of a file, in mode RGB or L.

    Raises:
        InvalidInputError: No JPEG, PNG or WebP, damaged, or more pixels than the package allows.
    """
    images = load()
    try:
        if (size := webp_size(data)) is not None:
            _check_size(size, step)  # its decoder takes memory for all of it when it is made
        image = images.open(io.BytesIO(data), formats=FORMATS)
        _check_size(image.size, step)
        if image.mode not in _MODES:
            _refuse_mode(image.mode)
        return image.convert("L" if step.channels == "GRAY" else "RGB")  # type: ignore[no-any-return]
    except (InvalidInputError, MemoryError):
        raise
    except Exception as error:  # decoders fail in every way that there is
        text = str(error) if "BytesIO" not in str(error) else "it has another format"
        raise InvalidInputError(
            f"The image cannot be read: {text[:200]}.", hint="Send JPEG, PNG or WebP."
        ) from error


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height that the head of a WebP announces; None for what is none."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    kind, number = data[12:16], int.from_bytes
    if kind == b"VP8X":
        return number(data[24:27], "little") + 1, number(data[27:30], "little") + 1
    if kind == b"VP8L":
        bits = number(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return number(data[26:28], "little") & 0x3FFF, number(data[28:30], "little") & 0x3FFF


def _check_size(size: tuple[int, int], step: DecodeImage) -> None:
    """Refuse what a file's head announces, before anything of it is unpacked."""
    width, height = size
    if width * height > step.max_pixels or max(width, height) > MAX_SIDE:
        raise InvalidInputError(
            f"The image has {width} x {height} pixels; the model takes at most {step.max_pixels}, "
            f"and {MAX_SIDE} a side."
        )


def _refuse_mode(mode: str) -> NoReturn:
    raise InvalidInputError(
        f"The image has pixels of the kind {mode!r}; 8 bits a channel are taken."
    )


def take(frame: np.ndarray, step: Frame) -> Image:
    """Return a UINT8 [height, width, channels] array as an image.

    Raises:
        InvalidInputError: It is empty or too large.
    """
    height, width = frame.shape[:2]
    if not frame.size or max(height, width) > MAX_SIDE:
        raise InvalidInputError(f"A frame cannot have {width} x {height} pixels.")
    pixels = frame[:, :, 0] if step.channels == "GRAY" else frame
    return load().fromarray(np.ascontiguousarray(pixels))  # type: ignore[no-any-return]


def resize(image: Image, step: Resize, geometry: Geometry) -> tuple[Image, Geometry]:
    """Return the image in another size, and where its points lie in the original."""
    images = load()
    how = images.Resampling[step.filter.upper()]
    width, height = image.size
    size = (step.width, step.height)
    geometry = geometry._replace(seen_width=step.width, seen_height=step.height)
    if step.mode == "stretch":
        after = geometry.then(width / step.width, height / step.height, 0.0, 0.0)
        return image.resize(size, how), after
    if step.mode == "letterbox":
        ratio = min(step.width / width, step.height / height)
        inner = (max(1, round(width * ratio)), max(1, round(height * ratio)))
        left, top = (0, 0) if step.pad == "end" else _middle(size, inner)
        paper = images.new(image.mode, size, (step.fill,) * len(image.getbands()))
        paper.paste(image.resize(inner, how), (left, top))
        return paper, geometry.then(width / inner[0], height / inner[1], left, top)
    return _center_crop(image, step, geometry)


def _center_crop(image: Image, step: Resize, geometry: Geometry) -> tuple[Image, Geometry]:
    """Scale and cut in one step: what is cut away is never computed, however long the image is."""
    width, height = image.size
    how = load().Resampling[step.filter.upper()]
    ratio = step.shorter / min(width, height)
    if not step.shorter:
        ratio = max(step.width / width, step.height / height)
    whole = (max(step.width, round(width * ratio)), max(step.height, round(height * ratio)))
    left, top = _middle(whole, (step.width, step.height))
    scale_x, scale_y = width / whole[0], height / whole[1]
    box = (
        left * scale_x, top * scale_y,
        min(width, (left + step.width) * scale_x), min(height, (top + step.height) * scale_y),
    )  # fmt: skip
    cut = image.resize((step.width, step.height), how, box)
    return cut, geometry.then(scale_x, scale_y, -left, -top)


def _middle(outer: tuple[int, int], inner: tuple[int, int]) -> tuple[int, int]:
    """Return where `inner` lies in the middle of `outer`."""
    return (outer[0] - inner[0]) // 2, (outer[1] - inner[1]) // 2

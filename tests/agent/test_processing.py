"""The steps around a model: each against plain code that was written apart from it, and Pillow."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from edgefleet_agent.worker.processing import after, before, boxes, images
from edgefleet_agent.worker.processing.after import Labels
from edgefleet_agent.worker.processing.images import Geometry
from edgefleet_shared import processing as p
from edgefleet_shared.errors import InvalidInputError
from tests.agent import straightforward

RNG = np.random.default_rng(5)
PIXELS = RNG.integers(0, 256, (37, 53, 3), np.uint8)


def file_of(pixels: np.ndarray, kind: str = "PNG", **options) -> bytes:
    """Pixels as a file."""
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, kind, **options)
    return held.getvalue()


def given(data: bytes) -> np.ndarray:
    """A file as the codec hands it over."""
    return np.array([data], object)


def prepare(data: bytes, *steps, channels: str = "RGB"):
    """Decode a file and apply steps."""
    return before.prepare(given(data), [p.DecodeImage(channels), *steps])


@pytest.mark.parametrize("kind", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(53, 37), (20, 11), (64, 90), (53, 5), (1, 1), (7, 80)])
def test_resize_is_pillows_to_the_bit_and_plain_arithmetic(kind, size):
    """Every pixel equals Pillow's own resize and an independent implementation of its filter."""
    width, height = size
    found, _ = prepare(file_of(PIXELS), p.Resize(width, height, filter=kind))
    how = Image.Resampling[kind.upper()]
    np.testing.assert_array_equal(found, Image.fromarray(PIXELS).resize(size, how))
    np.testing.assert_array_equal(found, straightforward.resize(PIXELS, width, height, kind))


@pytest.mark.parametrize("channels", ["RGB", "BGR", "GRAY"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_three_formats_and_orders_of_colour(kind, channels):
    """JPEG, PNG and WebP decode as Pillow does; BGR is turned round, GRAY has one channel."""
    data = file_of(PIXELS, kind)
    found, geometry = prepare(data, channels=channels)
    plain = np.asarray(Image.open(io.BytesIO(data)).convert("L" if channels == "GRAY" else "RGB"))
    want = {"RGB": plain, "BGR": plain[..., ::-1], "GRAY": plain[..., None]}[channels]
    np.testing.assert_array_equal(found, want)
    assert geometry == Geometry(53, 37, 53, 37)


def test_letterbox_keeps_proportions_and_tells_where_points_lie():
    """The image stands in the middle of grey; its corners go back to the original's corners."""
    found, where = prepare(file_of(PIXELS), p.Resize(64, 64, "letterbox", fill=114))
    inner = np.asarray(Image.fromarray(PIXELS).resize((64, 45), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(found[9:54], inner)
    assert (found[:9] == 114).all()
    assert (found[54:] == 114).all()
    corners = np.array([[0, 9, 64, 54]], np.float64)
    np.testing.assert_allclose(boxes._back(corners, where), [[0, 0, 53, 37]])
    end, where = prepare(file_of(PIXELS), p.Resize(64, 64, "letterbox", fill=7, pad="end"))
    np.testing.assert_array_equal(end[:45], inner)
    assert (where.left, where.top) == (0, 0)


@pytest.mark.parametrize("shorter", [0, 48])
def test_centre_crop_is_resize_and_cut(shorter):
    """Scaled and cut at once equals scaled whole and then cut, within a rounding step."""
    found, where = prepare(file_of(PIXELS), p.Resize(32, 40, "center_crop", shorter=shorter))
    ratio = shorter / 37 if shorter else max(32 / 53, 40 / 37)
    whole = (round(53 * ratio), round(37 * ratio))
    left, top = (whole[0] - 32) // 2, (whole[1] - 40) // 2
    large = np.asarray(Image.fromarray(PIXELS).resize(whole, Image.Resampling.BILINEAR))
    want = large[top : top + 40, left : left + 32].astype(int)
    assert np.abs(found.astype(int) - want).max() <= 1
    back = boxes._back(np.array([[0.0, 0.0, 32.0, 40.0]]), where)[0]
    scale = np.array([53 / whole[0], 37 / whole[1]] * 2)
    np.testing.assert_allclose(back, np.array([left, top, left + 32, top + 40]) * scale)


def test_a_long_image_is_cropped_without_growing():
    """A line of 16,000 pixels is cut to a square without the giant that scaling it would make."""
    line = np.tile(np.arange(160, dtype=np.uint8), 100)[None, :, None].repeat(3, axis=2)
    found, _ = prepare(file_of(line), p.Resize(224, 224, "center_crop"))
    assert found.shape == (224, 224, 3)


def test_two_resizes_compose():
    """Points come back through both."""
    first, second = p.Resize(40, 40, "letterbox"), p.Resize(20, 10)
    _, where = prepare(file_of(PIXELS), first, second)
    inside = np.array([[0.0, 6.0 / 4, 20.0, 34.0 / 4]])  # the letterbox's content, squeezed
    np.testing.assert_allclose(boxes._back(inside, where), [[0, 0, 53, 37]], atol=1e-9)
    assert (where.seen_width, where.seen_height) == (20, 10)


def test_numbers_after_normalise_layout_and_quantise():
    """The arithmetic is as the steps' descriptions say, element by element."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    normal = p.Normalise(1 / 255, mean, std)
    found, _ = prepare(file_of(PIXELS), normal, p.Layout())
    want = (PIXELS / 255 - mean) / std
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found, want.transpose(2, 0, 1)[None], rtol=1e-5, atol=1e-6)
    found, _ = prepare(file_of(PIXELS), normal, p.Quantise(0.02, -3, "INT8"), p.Layout("HWC"))
    want = np.clip(np.rint((PIXELS / 255 - mean) / std / 0.02) - 3, -128, 127)
    assert found.dtype == np.int8
    assert np.abs(found[0] - want).max() <= 1  # a half may round either way in 32 bits
    assert (found[0] == want).mean() > 0.999
    found, _ = prepare(file_of(PIXELS), p.Cast("INT8"), p.Layout("HWC", batch=False))
    np.testing.assert_array_equal(found, np.minimum(PIXELS, 127))


def test_an_image_becomes_one_row():
    """Row by row, the channels of a pixel side by side."""
    found, _ = prepare(file_of(PIXELS), p.Layout("FLAT"))
    np.testing.assert_array_equal(found, PIXELS.reshape(1, -1))


def test_a_frame_needs_no_file():
    """Pixels go through the same steps as a file's, in the order in which they came."""
    steps = [p.Resize(20, 11), p.Layout()]
    found, _ = before.prepare(PIXELS, [p.Frame("BGR"), *steps])
    want, _ = prepare(file_of(PIXELS), *steps)
    np.testing.assert_array_equal(found, want)


def png_head(width: int, height: int) -> bytes:
    """The beginning of a PNG that announces a size; nothing of it follows."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 100))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts
    )


def webp_head(width: int, height: int) -> bytes:
    """The beginning of an animated WebP that announces a canvas; no frame follows."""
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + canvas
    body += b"ANIM" + struct.pack("<I", 6) + bytes(6)
    return b"RIFF" + struct.pack("<I", len(body)) + body


BAD = {
    "no image": (b"hello, I am not an image", "another format"),
    "empty": (b"", "another format"),
    "a GIF": (file_of(PIXELS, "GIF"), "another format"),
    "a TIFF": (file_of(PIXELS, "TIFF"), "another format"),
    "cut off": (file_of(PIXELS, "JPEG")[:200], "cannot be read"),
    "damaged": (file_of(PIXELS)[:60] + b"\0" * 60, "cannot be read"),
    "a decompression bomb": (png_head(16_000, 16_000), "16000 x 16000 pixels"),
    "a WebP's canvas": (webp_head(16_000, 16_000), "16000 x 16000 pixels"),
    "too long a side": (png_head(20_000, 1), "16384 a side"),
    "16 bits a channel": (file_of(PIXELS[..., 0].astype(np.uint16)), "8 bits a channel"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_fit_image_is_refused(what):
    """Foreign formats, damage and bombs get an answer that says why, before pixels are made."""
    data, why = BAD[what]
    with pytest.raises(InvalidInputError, match=why):
        prepare(data)


def test_every_cut_of_a_jpeg_is_answered():
    """However much of a file is missing: an image or a refusal, never another error."""
    data = file_of(PIXELS, "JPEG")
    for end in range(0, len(data), 97):
        try:
            prepare(data[:end])
        except InvalidInputError:
            continue


def test_nothing_is_imported_once_the_sandbox_stands():
    """After `load`, no file of any kind makes Pillow import a module, which it could not read."""
    code = """
import io, sys
import numpy as np
from edgefleet_agent.worker.processing import around, before, images
from edgefleet_shared import processing as p
images.load()
held = set(sys.modules)
around._grey(p.DecodeImage())
for text in sys.stdin.read().split():
    steps = [p.DecodeImage("GRAY"), p.Resize(9, 9, "letterbox", filter="bicubic"), p.Layout()]
    before.prepare(np.array([bytes.fromhex(text)], object), steps)
print(sorted(set(sys.modules) - held))
"""
    exif = Image.Exif()
    exif[0x011A] = 300.0
    other = Image.fromarray(PIXELS[::-1])
    files = [file_of(PIXELS, kind) for kind in ("JPEG", "PNG", "WEBP")]
    files += [
        file_of(PIXELS, "JPEG", exif=exif),
        file_of(PIXELS, "MPO", save_all=True, append_images=[other]),
        file_of(PIXELS, "WEBP", save_all=True, append_images=[other]),
        file_of(PIXELS, "PNG", exif=exif, save_all=True, append_images=[other]),
    ]
    found = subprocess.run(
        [sys.executable, "-c", code], input=" ".join(one.hex() for one in files),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0x"}])
def test_a_webps_size_is_read_from_its_head(options):
    """Lossy, lossless and extended files say what Pillow finds."""
    data = file_of(PIXELS, "WEBP", **options)
    assert images.webp_size(data) == Image.open(io.BytesIO(data)).size == (53, 37)
    assert images.webp_size(file_of(PIXELS)) is None


def finish(step, labels=(), geometry=None, **found):
    """Apply one step of `post`."""
    return after.finish(found, [step], Labels(labels), geometry)


def test_softmax_sigmoid_and_dequantise():
    """They agree with the formulas in 64 bits, also far from zero."""
    x = np.array([[1000.0, 999.0, -1000.0], [0.5, -0.25, 3.0]], np.float32)
    wide = np.exp(x.astype(np.float64) - x.max(axis=1, keepdims=True))
    soft = finish(p.Softmax(), y=x)["y"]
    np.testing.assert_allclose(soft, wide / wide.sum(axis=1, keepdims=True), rtol=1e-5)
    small = finish(p.Sigmoid(), y=x)["y"]
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(small, 1 / (1 + np.exp(-x.astype(np.float64))), atol=1e-6)
    bytes_ = np.array([-128, 0, 127], np.int8)
    np.testing.assert_allclose(finish(p.Dequantise(0.5, 7), y=bytes_)["y"], [-67.5, -3.5, 60.0])
    assert soft.dtype == small.dtype == np.float32


def test_top_k_and_argmax_name_classes():
    """Largest first; of equals the lower class; labels by class."""
    x = np.array([[0.1, 0.9, 0.9, -1.0], [5, 4, 3, 2]], np.float32)
    found = finish(p.TopK(3, labels="labels"), "abcd", y=x)
    assert found["classes"].tolist() == [[1, 2, 0], [0, 1, 2]]
    assert found["labels"].tolist() == [["b", "c", "a"], ["a", "b", "c"]]
    np.testing.assert_array_equal(found["scores"], np.float32([[0.9, 0.9, 0.1], [5, 4, 3]]))
    found = finish(p.Argmax(labels="name"), "abcd", y=x)
    assert found["classes"].tolist() == [1, 0]
    assert found["name"].tolist() == ["b", "a"]
    with pytest.raises(RuntimeError, match="labels for 2 classes"):
        finish(p.Argmax(labels="name"), "ab", y=x[:, ::-1])


def test_threshold_keeps_what_stands_together():
    """Elements below the value go, and their companions with them."""
    found = finish(
        p.Threshold(0.5, "s", ["c"]), s=np.float32([[0.9, 0.5, 0.1]]), c=np.array([[4, 5, 6]])
    )
    assert found["s"].tolist() == pytest.approx([0.9, 0.5])
    assert found["c"].tolist() == [4, 5]


def detections(seed: int, count: int = 300, classes: int = 3):
    """Random boxes in clusters, and scores without equals."""
    rng = np.random.default_rng(seed)
    middle = rng.uniform(40, 600, (12, 2))[rng.integers(0, 12, count)]
    corner = middle + rng.normal(0, 8, (count, 2))
    corners = np.concatenate([corner, corner + rng.uniform(20, 90, (count, 2))], axis=1)
    scores = rng.permutation(count * classes).reshape(count, classes) / (count * classes)
    return corners.astype(np.float32), scores.astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.7, 1.0])
def test_suppression_agrees_with_the_plain_one(seed, agnostic, overlap):
    """The same boxes stay, in the same order, with the same scores and classes."""
    corners, scores = detections(seed)
    step = p.NonMaxSuppression(
        scores="s", boxes="b", score_threshold=0.4, iou_threshold=overlap,
        class_agnostic=agnostic, max_detections=40,
    )  # fmt: skip
    got, got_scores, got_classes = boxes.suppress(
        step, {"b": corners[None], "s": scores[None]}, None
    )
    kept, classes, best = straightforward.suppress(
        corners.astype(float), scores, 0.4, overlap, 40, agnostic=agnostic
    )
    np.testing.assert_allclose(got, corners[kept], rtol=1e-6)
    assert got_classes.tolist() == [classes[i] for i in kept]
    np.testing.assert_allclose(got_scores, [best[i] for i in kept])


def test_every_layout_of_a_detector_says_the_same():
    """Rows, columns, objectness, middle and size, shares, turned axes: one result."""
    corners, scores = detections(9, 80)
    plain = p.NonMaxSuppression(boxes="b", scores="s", score_threshold=0.3)
    where = Geometry(640, 640, 640, 640)
    want = boxes.suppress(plain, {"b": corners[None], "s": scores[None]}, where)
    middle = np.concatenate(
        [(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1
    )
    table = np.concatenate([middle, scores], axis=1)
    sure = np.concatenate([middle, np.full((80, 1), 0.5), scores * 2], axis=1)
    ways = [
        ({"format": "cxcywh"}, table[None]),
        ({"format": "cxcywh", "order": "columns"}, table.T[None]),
        ({"format": "cxcywh", "objectness": True}, sure[None]),
        ({"format": "cxcywh", "normalised": True},
         np.concatenate([middle / 640, scores], axis=1)[None]),
        ({"format": "yxyx"}, np.concatenate([corners[:, [1, 0, 3, 2]], scores], axis=1)[None]),
    ]  # fmt: skip
    for fields, tensor in ways:
        step = p.NonMaxSuppression(score_threshold=0.3, **fields)
        got = boxes.suppress(step, {"o": tensor.astype(np.float32)}, where)
        np.testing.assert_allclose(got[0], want[0], atol=1e-3)
        np.testing.assert_allclose(got[1], want[1], atol=1e-6)
        assert got[2].tolist() == want[2].tolist()


def test_suppression_of_nothing_and_of_nonsense():
    """No box, no likely box, boxes that are no numbers: empty answers of the right shape."""
    step = p.NonMaxSuppression(boxes="b", scores="s")
    for count, score, value in [(0, 1.0, 1.0), (5, 0.01, 1.0), (5, 0.9, np.nan)]:
        found = boxes.suppress(
            step,
            {"b": np.full((1, count, 4), value, np.float32),
             "s": np.full((1, count, 2), score, np.float32)}, None,
        )  # fmt: skip
        assert [array.shape for array in found] == [(0, 4), (0,), (0,)]
    with pytest.raises(RuntimeError, match="one image"):
        boxes.suppress(step, {"b": np.zeros((2, 5, 4)), "s": np.zeros((2, 5, 2))}, None)

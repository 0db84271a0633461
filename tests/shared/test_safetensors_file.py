"""Our safetensors reader and writer against the official library, and against attackers."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import SafetensorError
from safetensors.numpy import load, save

from edgefleet_shared import safetensors_file
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.safetensors_file import RawTensor

NUMPY = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "i1",
    "INT16": "<i2", "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip

arrays = st.sampled_from(sorted(NUMPY)).flatmap(
    lambda name: st.tuples(
        st.just(name),
        hnp.arrays(NUMPY[name], hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)),
    )
)
files = st.dictionaries(st.text(min_size=1), arrays, max_size=5)


def array_of(tensor: RawTensor) -> np.ndarray:
    """Return a raw tensor as numpy sees it."""
    return np.frombuffer(tensor.data, NUMPY[tensor.datatype]).reshape(tensor.shape)


@settings(deadline=None)
@given(files)
def test_the_official_library_reads_what_we_write(tensors):
    """Every tensor that we write comes out of `safetensors` with its dtype, shape and bytes."""
    data = safetensors_file.encode(
        {name: RawTensor(kind, array.shape, array.tobytes()) for name, (kind, array)
         in tensors.items()}
    )  # fmt: skip
    read = load(data)
    assert read.keys() == tensors.keys()
    for name, (_, array) in tensors.items():
        assert read[name].dtype == array.dtype
        assert read[name].shape == array.shape
        assert read[name].tobytes() == array.tobytes()


@settings(deadline=None)
@given(files)
def test_we_read_what_the_official_library_writes(tensors):
    """Every tensor that `safetensors` writes is read with its dtype, shape and bytes."""
    data = save({name: array for name, (_, array) in tensors.items()}, metadata={"made": "here"})
    read = safetensors_file.decode(data)
    assert read.keys() == tensors.keys()
    for name, (kind, array) in tensors.items():
        assert read[name].datatype == kind
        assert array_of(read[name]).tobytes() == array.tobytes()
        assert read[name].shape == array.shape


def test_a_view_of_floats_is_written_whole():
    """The length of a tensor is counted in bytes, whatever the view's element is."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    data = safetensors_file.encode({"x": RawTensor("FP32", (2, 3), memoryview(array))})
    assert (array_of(safetensors_file.decode(data)["x"]) == array).all()


def test_reading_copies_nothing():
    """Tensors are views into the bytes that were given."""
    data = bytearray(save({"x": np.zeros(4, np.uint8)}))
    tensor = safetensors_file.decode(memoryview(data))["x"]
    data[-1] = 7
    assert bytes(tensor.data) == b"\0\0\0\7"


def file_of(header: object, body: bytes = b"", *, length: int | None = None) -> bytes:
    """Return a file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    return size.to_bytes(8, "little") + text + body


def entry(dtype="U8", shape=(4,), begin=0, end=4) -> dict[str, object]:
    """Return a header entry."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


BODY = bytes(4)
REFUSED: dict[str, bytes] = {
    "nothing": b"",
    "seven bytes": bytes(7),
    "a header beyond the file": file_of({}, length=99),
    "a header of 2^63 bytes": file_of({}, length=2**63),
    "a header over 1 MiB": file_of(b" " * ((1 << 20) + 1)),
    "no JSON": file_of(b"x"),
    "a list": file_of([]),
    "a tensor twice": file_of(b'{"x":%b,"x":%b}' % ((json.dumps(entry()).encode(),) * 2), BODY),
    "an unknown dtype": file_of({"x": entry(dtype="F8")}, BODY),
    "no dtype": file_of({"x": {"shape": [4], "data_offsets": [0, 4]}}, BODY),
    "a shape that is too small": file_of({"x": entry(shape=[3])}, BODY),
    "a shape that is too large": file_of({"x": entry(shape=[5])}, BODY),
    "negative sides": file_of({"x": entry(shape=[-2, -2])}, BODY),
    "a side that is a float": file_of({"x": entry(shape=[4.0])}, BODY),
    "offsets beyond the file": file_of({"x": entry(shape=[5], end=5)}, BODY),
    "offsets that go back": file_of({"x": entry(begin=4, end=0)}, BODY),
    "a negative offset": file_of({"x": entry(begin=-4, end=0)}, BODY),
    "three offsets": file_of({"x": {**entry(), "data_offsets": [0, 2, 4]}}, BODY),
    "an overlap": file_of({"x": entry(), "y": entry()}, BODY),
    "a partial overlap": file_of(
        {"x": entry(shape=[3], end=3), "y": entry(shape=[2], begin=2)}, BODY),
    "a hole": file_of({"x": entry(shape=[1], end=1), "y": entry(shape=[1], begin=3)}, BODY),
    "bytes of no tensor": file_of({"x": entry()}, BODY + b"x"),
    "bytes and no tensor": file_of({}, BODY),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    """What does not hold is refused; the official library refuses it too, but for doubled keys."""
    data = REFUSED[name]
    with pytest.raises(InvalidInputError) as refused:
        safetensors_file.decode(data)
    assert refused.value.code == "malformed"
    if name != "a tensor twice":
        with pytest.raises(SafetensorError):
            load(data)


def test_a_shape_of_many_huge_sides_costs_nothing():
    """A header whose sides multiply to a number of megabytes is refused in milliseconds."""
    bomb = file_of({"x": entry(shape=[2**53 - 1] * 50_000)}, BODY)
    start = time.perf_counter()
    with pytest.raises(InvalidInputError):
        safetensors_file.decode(bomb)
    assert time.perf_counter() - start < 0.5


def test_bytes_tensors_cannot_be_written():
    """The format has no text: a BYTES tensor is refused by name."""
    with pytest.raises(InvalidInputError, match="'words' is BYTES") as refused:
        safetensors_file.encode({"words": RawTensor("BYTES", (1,), b"a")})
    assert refused.value.code == "golden_datatype"


@pytest.mark.parametrize("shape", [(3,), (5,), (-4,), (2**40,)])
def test_data_that_does_not_fill_its_shape_is_not_written(shape):
    """A writer's mistake stops here and not on a thousand devices."""
    with pytest.raises(InvalidInputError):
        safetensors_file.encode({"x": RawTensor("UINT8", shape, b"abcd")})


@settings(deadline=None)
@given(st.binary(max_size=64), st.binary(max_size=16))
def test_noise_never_does_more_than_be_refused(header, body):
    """Whatever the bytes, the answer is tensors or InvalidInputError."""
    try:
        safetensors_file.decode(file_of(header, body))
    except InvalidInputError as refused:
        assert refused.code == "malformed"

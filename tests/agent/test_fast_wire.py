"""The fast path's frames: what is written is read back, and nothing else gets through."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefleet_agent.ipc import fast
from edgefleet_agent.ipc.fast_inbox import Inbox
from edgefleet_shared.errors import InvalidInputError

NAMES = st.text(max_size=20)
U64 = st.integers(0, 2**64 - 1)
SLOTS = st.integers(0, fast.SLOTS_MAX - 1)
TENSORS = st.builds(
    fast.Tensor,
    NAMES,
    st.sampled_from(fast.DATATYPES[1:]),
    st.lists(U64, max_size=fast.RANK_MAX).map(tuple),
    SLOTS | st.just(fast.INLINE),
    U64,
    U64,
)
AREAS = st.builds(fast.Tensor, NAMES, st.just(""), st.just(()), SLOTS, U64, U64) | st.builds(
    fast.Tensor, NAMES, st.just(""), st.just(()), st.just(fast.INLINE), st.just(0), st.just(0)
)


def groups(kind):
    """Lists of tensors without a name twice."""
    return st.lists(kind, max_size=4, unique_by=lambda t: t.name).map(tuple)


HEADS = st.builds(fast.Head, NAMES, NAMES, groups(TENSORS), groups(AREAS), st.booleans())


@given(HEADS)
def test_a_head_is_read_as_it_was_written(head):
    """Every head that can be said comes back the same, by eights."""
    data = fast.encode_head(head)
    assert len(data) % 8 == 0
    assert fast.decode_head(data) == head


@given(HEADS, st.data())
def test_a_damaged_head_is_refused_or_is_another_head(head, data):
    """A head with bytes changed, cut or added raises one kind of error, or can be written again."""
    bad = bytearray(fast.encode_head(head))
    for _ in range(data.draw(st.integers(1, 4))):
        bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    bad = bad[: data.draw(st.integers(0, len(bad)))] + data.draw(st.binary(max_size=9))
    try:
        found = fast.decode_head(bytes(bad))
    except InvalidInputError as error:
        assert error.code == "bad_frame"
    else:
        assert fast.decode_head(fast.encode_head(found)) == found


@given(st.binary(max_size=200))
def test_noise_is_no_head(noise):
    """Whatever comes, reading it ends with an answer or the one error."""
    for read in (fast.decode_head, fast.read_offer, fast.decode_limits, fast.decode_refusal):
        try:
            read(noise)
        except InvalidInputError as error:
            assert error.code == "bad_frame"


@given(st.integers(0, 999), st.text(max_size=30), st.text(max_size=200), st.integers(0, 2**32 - 1))
def test_a_refusal_is_read_as_it_was_written(status, code, message, retry):
    """Status, code, message and the time to wait come back; only trailing zeros are lost."""
    code, message = code.replace("\0", ""), message.replace("\0", "")
    refusal = fast.Refusal(status, code, message, retry)
    found = fast.decode_refusal(fast.encode_refusal(refusal))
    assert found.status == status
    assert found.retry_after_ms == retry
    assert code.encode()[:64].decode("utf-8", "replace") == found.code
    assert found.message == message


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 2**32 - 1))
def test_only_this_version_of_frames_is_read(magic, version, length):
    """Another first byte, version or head length than allowed is refused."""
    data = struct.pack("<BBBBIIIQ", magic, version, fast.INFER, 0, 1, length, 0, 0)
    good = magic == fast.MAGIC and version == fast.VERSION and length <= fast.HEAD_MAX
    if good and length % 8 == 0:
        assert fast.read_prefix(data) == (fast.INFER, 0, 1, length, 0, 0)
    else:
        with pytest.raises(InvalidInputError):
            fast.read_prefix(data)


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 90_000)), min_size=1, max_size=5),
    st.integers(1, 70_000),
)
def test_frames_come_whole_however_they_are_cut(sizes, step):
    """A stream received in pieces of any size gives the same frames in the same order."""
    frames = [
        fast.prefix(fast.INFER, number, 8 * head, inline, number)
        + bytes([number]) * (8 * head + inline)
        for number, (head, inline) in enumerate(sizes, 1)
    ]
    stream, inbox, found = b"".join(frames), Inbox(200_000), []
    for begin in range(0, len(stream), step):
        inbox.feed(stream[begin : begin + step])
        while (frame := inbox.next()) is not None:
            prefix, body = frame
            found.append(fast.prefix(prefix[0], prefix[2], prefix[3], prefix[4], prefix[5]) + body)
    assert found == frames
    assert inbox.awaited == 0


def test_a_frame_that_is_too_long_is_refused_before_it_comes():
    """The prefix is enough, so that nobody makes room for a lie."""
    inbox = Inbox(1000)
    inbox.feed(fast.prefix(fast.INFER, 1, 8, 2**32 - 1))
    with pytest.raises(InvalidInputError) as caught:
        inbox.next()
    assert caught.value.code == "body_too_large"


@pytest.mark.parametrize(("head", "why"), [
    (fast.Head("m", "", (fast.Tensor("x", "FP32", (1,), 40, 0, 4),)), "Slot 40"),
    (fast.Head("m", "", (fast.Tensor("x", "", (1,), 0, 0, 4),)), "no datatype"),
    (fast.Head("m", "", (fast.Tensor("x", "FP32", (1,), 0, 0, 4),) * 2), "twice"),
    (fast.Head("m", "", (), (fast.Tensor("y", "FP32", (), 0, 0, 4),)), "neither"),
    (fast.Head("m", "", (), (fast.Tensor("y", "", (), fast.INLINE, 0, 4),)), "neither"),
])  # fmt: skip
def test_a_head_that_means_nothing_is_refused(head, why):
    """What can be written but not meant is found when it is read."""
    with pytest.raises(InvalidInputError, match=why):
        fast.decode_head(fast.encode_head(head))


def test_what_a_frame_cannot_say_is_not_written():
    """Too many dimensions, an unknown datatype or an endless name raise before they are sent."""
    for tensor in (
        fast.Tensor("x", "FP32", (1,) * 300, 0, 0, 4),
        fast.Tensor("x", "COMPLEX", (1,), 0, 0, 4),
        fast.Tensor("x" * 70_000, "FP32", (1,), 0, 0, 4),
    ):
        with pytest.raises(InvalidInputError):
            fast.encode_head(fast.Head("m", "", (tensor,)))

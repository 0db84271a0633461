"""The twelve words, the error tree and the message types: what the docs and machines rely on."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest

from edgefleet_shared import errors, messages, strict_json
from edgefleet_shared.errors import EdgeFleetError, InvalidInputError
from edgefleet_shared.steps import Step


def test_the_twelve_words():
    """The words and their order are fixed."""
    assert " ".join(Step) == (
        "publish accept target announce receive fetch verify prepare prove activate infer report"
    )


def test_the_drawn_tree_is_the_tree():
    """The picture in the module's docstring names every error, and no other, under the root."""
    drawn = [line.split()[1] for line in errors.__doc__.splitlines() if line[:1] in {"├", "└"}]
    assert drawn == [cls.__name__ for cls in EdgeFleetError.__subclasses__()
                     if cls.__module__ == errors.__name__]  # fmt: skip


def test_an_error_reads_as_message_then_hint():
    """The text for people is the sentence and what to do; the code is for machines."""
    plain = InvalidInputError("It is wrong.")
    assert (str(plain), plain.code, plain.hint) == ("It is wrong.", "invalid_input", "")
    full = InvalidInputError("It is wrong.", code="wrong", hint="Mend it.")
    assert (str(full), full.code) == ("It is wrong. Mend it.", "wrong")


SAMPLES = [
    messages.Get(1, 7, 2),
    messages.Presence(1, True, "boot"),
    messages.Desired(1, 7, "t", "YQ==", "YQ==", "http://x/v1/blobs"),
    messages.SlotReport("d", 1, 2, "staged", "", ""),
    messages.Reported(1, "cam-1", "boot", 3, "t", 7, {"digits": messages.SlotReport(
        "d", 1, 2, "staged", "", "")}, {"version": "0.1.0"},
        locked=messages.OwnersLock("t", "anna", "inspection", "u")),
    messages.Batch(1, "cam-1", "boot", "events", "t", [1, 2], [{"a": 1}, {}]),
    messages.DeviceEvent("t", "info", "fetch", "code", "Message."),
    messages.SwapReceipt("t", "activate", "digits", "d", "", "", "sha256:x", "1.0.0",
                         0, 0, 0, 0, None, None, None),
    messages.TelemetryWindow("a", "b", "digits", "d", "1.0.0", 1, 2, 3, 4, 5, 6, 7, {3: 1}, {}),
    messages.Access("demo", "cam-1", "a", "t"),
    messages.Policy(),
]  # fmt: skip


@pytest.mark.parametrize("message", SAMPLES, ids=lambda m: type(m).__name__)
def test_messages_travel(message):
    """Every message survives JSON, integer keys of histograms included."""
    data = strict_json.encode(message)
    assert strict_json.decode(data, type(message), max_bytes=9999, what="message") == message


@pytest.mark.parametrize("message", SAMPLES, ids=lambda m: type(m).__name__)
def test_a_later_minor_version_is_read(message):
    """A field that we do not know yet is ignored: old and new speak with one another."""
    fields = {**msgspec.to_builtins(message, str_keys=True), "field_of_2031": [1]}
    data = strict_json.encode(fields)
    assert strict_json.decode(data, type(message), max_bytes=9999, what="message") == message


@pytest.mark.parametrize("message", [m for m in SAMPLES if hasattr(m, "v")],
                         ids=lambda m: type(m).__name__)  # fmt: skip
def test_another_protocol_version_is_refused(message):
    """`v` is a promise: a document of version 2 is not read as version 1."""
    fields = {**msgspec.to_builtins(message, str_keys=True), "v": 2}
    with pytest.raises(InvalidInputError):
        strict_json.decode(strict_json.encode(fields), type(message), max_bytes=9999, what="it")


def test_defaults_are_not_shared():
    """Two reports without agent facts do not share one dictionary."""
    one, two = (messages.Reported(1, "a", "b", 1, "t", 1, {}) for _ in range(2))
    assert one.agent is not two.agent


def test_payload_types_differ():
    """What is signed as one kind of message cannot be taken for another."""
    types = [messages.ASSIGNMENT_TYPE, messages.REPORTED_TYPE, messages.BATCH_TYPE,
             messages.ACCESS_TYPE]  # fmt: skip
    assert len(set(types)) == len(types)
    assert get_args(messages.Stream) == ("events", "receipts", "telemetry")

"""Twins: what is written into one reads back, fits its limits, and what is mixed up is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_shared import topics, twin
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.messages import Reported, SlotReport

texts = st.text(st.characters(max_codepoint=127), min_size=1, max_size=twin.INLINE_MAX)


def merged(target, patch):
    """Merge as RFC 7386 says."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


@given(texts, texts)
def test_the_newer_document_reads_back_whole(older, newer):
    """Patched over an older one, longer or shorter, the newer one is what is there."""
    properties = merged({}, twin.document_patch(older.encode()))
    properties = merged(properties, twin.document_patch(newer.encode()))
    found = twin.read_document(properties)
    assert found == (twin.digest(newer.encode()), len(newer), newer.encode())
    assert twin.read_document(twin.document_patch(newer.encode())) == found
    assert len(json.dumps(properties)) < 8 * 32 * 1024
    parts = properties[twin.SECTION]["document"].values()
    assert all(len(part) <= 4096 for part in parts if isinstance(part, str))


@pytest.mark.parametrize("payload", [b"x" * (twin.INLINE_MAX + 1), "größer".encode()])
def test_what_does_not_fit_is_told_by_its_digest_in_less_than_a_kilobyte(payload):
    """Too long, or not ASCII: a pointer, which leaves no part of an older document."""
    patch = twin.document_patch(payload)
    assert len(json.dumps(patch)) < 1024
    properties = merged(merged({}, twin.document_patch(b"older")), patch)
    assert twin.read_document(properties) == (twin.digest(payload), len(payload), None)
    assert twin.report_patch(payload) is None


def test_a_largest_document_and_a_largest_report_fit_a_section():
    """32 KB a section, with 64 slots in the summary."""
    slot = SlotReport("d" * 36, 9, 9, "rolled_back", "", "100000.100000.100000")
    slots = {f"{i:02}".ljust(63, "m"): slot for i in range(64)}
    report = Reported(1, "d" * 63, "b" * 36, 1, "", 1, slots)
    patch = twin.report_patch(b"x" * twin.INLINE_MAX, report)
    assert len(json.dumps(patch, separators=(",", ":"))) < 32 * 1024
    assert len(json.dumps(twin.document_patch(b"x" * twin.INLINE_MAX))) < 32 * 1024


@pytest.mark.parametrize(
    "change",
    [
        {"0": "other"}, {"n": 2}, {"n": -1}, {"n": True}, {"n": "1"}, {"sha256": None},
        {"sha256": "0" * 64}, {"size": None}, {"0": None}, {"0": {"a": 1}}, {"n": 10**9},
    ],
)  # fmt: skip
def test_a_mixture_is_refused(change):
    """Parts of another document, missing ones, and values of other types."""
    patch = twin.document_patch(b"document")
    patch[twin.SECTION]["document"].update(change)
    with pytest.raises(InvalidInputError, match="not whole"):
        twin.read_document(patch)
    with pytest.raises(InvalidInputError, match="not whole"):
        twin.read_report({twin.SECTION: {"report": patch[twin.SECTION]["document"]}})


@pytest.mark.parametrize("properties", [{}, {"edgefleet": 1}, {"edgefleet": {}}, {"other": {}}])
def test_a_twin_without_our_section_says_nothing(properties):
    """Absent is told apart from empty."""
    assert twin.read_document(properties) is None
    assert twin.read_report(properties) is None
    assert twin.read_renew(properties) is None


def test_a_word_to_renew_is_told_and_taken_back():
    """Null takes it back, and a patch of the document alone says nothing of it."""
    assert twin.read_renew(twin.renew_patch(b'{"v":1}')) == b'{"v":1}'
    assert twin.read_renew(twin.renew_patch(b"")) == b""
    assert twin.read_renew(twin.document_patch(b"x")) is None
    with pytest.raises(InvalidInputError):
        twin.renew_patch(b"x" * 4001)


def test_messages_have_the_topics_that_they_have_on_mqtt():
    """Each kind there and back; what is foreign has none."""
    for kind, topic in (
        ("get", topics.get("cam-1")),
        ("presence", topics.presence("cam-1")),
        ("reported", topics.reported("cam-1")),
    ):
        assert twin.topic_of("cam-1", twin.message_properties(kind)) == topic
    named = twin.message_properties("ev", "telemetry")
    assert twin.topic_of("cam-1", named) == topics.stream("cam-1", "telemetry")
    for strange in ({}, {"kind": "ev"}, {"kind": "desired"}, {"kind": 1}, {"kind": ["get"]}):
        assert twin.topic_of("cam-1", strange) is None
    assert twin.topic_of("../x", {"kind": "get"}) is None

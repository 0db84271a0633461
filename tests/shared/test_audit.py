"""The audit chain's hash: what docs/reference.md says, computed by another road."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_shared import audit
from edgefleet_shared.audit import Entry
from tests.house.documents import text_of

ENTRY = Entry(
    id=2,
    ts="2026-01-31T12:00:00.000Z",
    type="device.changed",
    step="target",
    subject="devices/cam-1",
    actor="token/admin",
    message="cam-1 is described anew.",
    data={},
    reason="Prüfstand",
    before={"labels": {"site": "hall-3"}, "hardware": "rpi5"},
    after={"labels": {}, "hardware": "rpi5"},
)
PREVIOUS = "00" * 32
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


def test_the_reference_s_test_vector_holds():
    """Who implements the chain from the reference alone gets this row's bytes and hash."""
    chapter = text_of("docs/reference.md").split("\n## Audit chain\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```\n(.*?)\n```", chapter, re.DOTALL)
    assert audit.canonical(PREVIOUS, ENTRY).decode() == blocks[0]
    assert audit.row_hash(PREVIOUS, ENTRY) == blocks[1]
    # The same without the library: the vector holds nothing on which encoders disagree.
    plain = json.dumps(
        ["edgefleet.audit.v1", PREVIOUS, *ENTRY],
        sort_keys=True, separators=(",", ":"), ensure_ascii=False,
    )  # fmt: skip
    assert hashlib.sha256(plain.encode()).hexdigest() == blocks[1]


@pytest.mark.parametrize("field", Entry._fields)
def test_every_field_counts(field):
    """Whatever is changed in a row, its hash is another."""
    value = getattr(ENTRY, field)
    other = value + 1 if isinstance(value, int) else {"x": 1} if isinstance(value, dict) else "x"
    changed = ENTRY._replace(**{field: other})
    assert audit.row_hash(PREVIOUS, changed) != audit.row_hash(PREVIOUS, ENTRY)
    assert audit.row_hash("11" * 32, ENTRY) != audit.row_hash(PREVIOUS, ENTRY)


def test_nothing_and_empty_differ():
    """A change to nothing at all is not the same as no word about it."""
    hashes = {
        audit.row_hash(PREVIOUS, ENTRY._replace(before=before, after=after))
        for before in (None, {})
        for after in (None, {})
    }
    assert len(hashes) == 4


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_a_round_trip_through_json_changes_nothing(data):
    """What a database and an API hand on as JSON text has the hash that was written."""
    entry = ENTRY._replace(data=data)
    again = ENTRY._replace(data=json.loads(json.dumps(data)))
    assert audit.canonical("", again) == audit.canonical("", entry)

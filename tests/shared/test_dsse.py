"""DSSE envelopes: an envelope is what one key signed, whatever else is written on it."""

from __future__ import annotations

import base64
import json
from copy import deepcopy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope

from edgefleet_shared import dsse
from edgefleet_shared.errors import EdgeFleetError, InvalidInputError, TrustError
from tests.shared.keys import signer

TYPE = "application/vnd.edgefleet.test.v1+json"
PAYLOAD = b'{"hello":"world"}'
ALICE, BOB = signer("alice"), signer("bob")
SEALED = dsse.seal(PAYLOAD, TYPE, ALICE)


def changed(**fields) -> bytes:
    """Return the sealed envelope with some of its fields replaced."""
    return json.dumps({**json.loads(SEALED), **fields}).encode()


def flip(text: str, bit: int) -> str:
    """Return base64 of the same bytes with one bit flipped."""
    data = bytearray(base64.b64decode(text))
    data[bit // 8] ^= 1 << bit % 8
    return base64.b64encode(data).decode()


def signature() -> dict[str, str]:
    """Return Alice's signature as it stands in the envelope."""
    return deepcopy(json.loads(SEALED)["signatures"][0])


def code_of(data: bytes, key=ALICE.public_key) -> str:
    """Return the code by which an envelope is refused."""
    with pytest.raises(EdgeFleetError) as refused:
        dsse.open_sealed(data, TYPE, key)
    assert isinstance(refused.value, TrustError | InvalidInputError)
    return refused.value.code


def test_what_is_sealed_opens():
    """The signer's key opens an envelope and gets the very bytes."""
    assert dsse.open_sealed(SEALED, TYPE, ALICE.public_key) == PAYLOAD


def test_another_implementation_reads_ours():
    """Securesystemslib's own reader and verifier accept what `seal` writes."""
    envelope = Envelope.from_dict(json.loads(SEALED))
    assert envelope.verify([ALICE.public_key], 1)
    assert envelope.payload == PAYLOAD


PAYLOAD64 = json.loads(SEALED)["payload"]
CASES: dict[str, tuple[bytes, str]] = {
    "a flipped bit in the payload": (changed(payload=flip(PAYLOAD64, 3)), "signature"),
    "another payload": (changed(payload="e30="), "signature"),
    "an empty payload": (changed(payload=""), "signature"),
    "a flipped bit in the signature": (
        changed(signatures=[{**signature(), "sig": flip(signature()["sig"], 77)}]), "signature"),
    "an empty signature": (changed(signatures=[{**signature(), "sig": ""}]), "signature"),
    "no signatures": (changed(signatures=[]), "signature"),
    "seventeen signatures": (
        changed(signatures=[{**signature(), "keyid": f"{i:064x}"} for i in range(17)]),
        "signature"),
    "another payload type": (changed(payloadType="text/plain"), "payload_type"),
    "the type with a space": (changed(payloadType=TYPE + " "), "payload_type"),
    "a type that is no text": (changed(payloadType=[TYPE]), "malformed"),
    "the same signature twice": (changed(signatures=[signature(), signature()]), "malformed"),
    "one key id, two signatures": (
        changed(signatures=[signature(), {**signature(), "sig": "AAAA"}]), "malformed"),
    "signatures that are an object": (changed(signatures=signature()), "malformed"),
    "signatures that are text": (changed(signatures="abc"), "malformed"),
    "a signature that is text": (changed(signatures=["abc"]), "malformed"),
    "a signature without bytes": (changed(signatures=[{"keyid": "a"}]), "malformed"),
    "a key id that is a number": (changed(signatures=[{**signature(), "keyid": 7}]), "malformed"),
    "payload null": (changed(payload=None), "malformed"),
    "url-safe base64": (changed(payload="_-__"), "malformed"),
    "base64 with a line end": (changed(payload=PAYLOAD64 + "\n"), "malformed"),
    "base64 with foreign characters": (changed(payload="*" + PAYLOAD64), "malformed"),
    "base64 with spare bits": (changed(payload="e31="), "malformed"),
    "base64 without padding": (changed(payload=PAYLOAD64.rstrip("=")), "malformed"),
    "base64 outside ASCII": (changed(payload="é"), "malformed"),
    "url-safe signature": (changed(signatures=[{**signature(), "sig": "_-__"}]), "malformed"),
    "not JSON": (b"MEUCIQ", "malformed"),
    "a list": (b"[]", "malformed"),
    "a second payload": (SEALED[:-1] + b',"payload":"e30="}', "malformed"),
    "too long": (changed(payload="A" * dsse.ENVELOPE_MAX_BYTES), "malformed"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "code"), CASES.values(), ids=CASES)
def test_refused(data, code):
    """Every changed envelope of the table is refused by its own code."""
    assert code_of(data) == code


def test_another_key_does_not_open():
    """Bob's key does not open what Alice sealed, even when the envelope names Bob's key id."""
    renamed = changed(signatures=[{**signature(), "keyid": BOB.public_key.keyid}])
    assert code_of(SEALED, BOB.public_key) == "signature"
    assert code_of(renamed, BOB.public_key) == "signature"


def test_the_key_id_is_only_a_hint():
    """Alice's signature under a foreign key id still opens with Alice's key, as DSSE wants."""
    renamed = changed(signatures=[{**signature(), "keyid": BOB.public_key.keyid}])
    assert dsse.open_sealed(renamed, TYPE, ALICE.public_key) == PAYLOAD


def test_one_good_signature_among_bad_ones_is_enough():
    """Garbage beside the right signature, before or after it, does not hide it."""
    garbage = {"keyid": "00", "sig": "AAAA"}
    for signatures in ([garbage, signature()], [signature(), garbage]):
        data = changed(signatures=signatures)
        assert dsse.open_sealed(data, TYPE, ALICE.public_key) == PAYLOAD


def test_a_signature_does_not_move_to_another_type():
    """What was signed as one type does not open as another, though the payload is the same."""
    other = changed(payloadType="application/vnd.edgefleet.other")
    with pytest.raises(TrustError) as refused:
        dsse.open_sealed(other, "application/vnd.edgefleet.other", ALICE.public_key)
    assert refused.value.code == "signature"


def test_reading_does_not_change_a_second_reading():
    """An envelope can be read twice from the same bytes with the same result."""
    assert dsse.read(SEALED, TYPE) == dsse.read(SEALED, TYPE)


def test_unknown_fields_are_ignored():
    """A field that DSSE does not know may stand there, as its specification says."""
    assert dsse.open_sealed(changed(extra=[1]), TYPE, ALICE.public_key) == PAYLOAD


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_byte_may_change(data):
    """One byte changed anywhere: refused, or the payload is still the one that was signed."""
    place = data.draw(st.integers(0, len(SEALED) - 1))
    value = data.draw(st.integers(0, 255))
    mutated = SEALED[:place] + bytes([value]) + SEALED[place + 1 :]
    try:
        assert dsse.open_sealed(mutated, TYPE, ALICE.public_key) == PAYLOAD
    except (TrustError, InvalidInputError):
        assert mutated != SEALED


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=300))
def test_any_payload_travels(payload):
    """Whatever the payload's bytes, they come out as they went in."""
    assert dsse.open_sealed(dsse.seal(payload, TYPE, BOB), TYPE, BOB.public_key) == payload

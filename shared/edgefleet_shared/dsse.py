"""DSSE envelopes: sign bytes, verify bytes, parse only what was verified.

Source: secure-systems-lab/dsse protocol.md 1.0.2; the envelope class is securesystemslib's, reading
is ours: one text for one payload, nothing optional. A signature itself can be written in two ways
(ECDSA), so only the payload identifies a message, never the envelope.
"""

from __future__ import annotations

import base64

import msgspec
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Key, Signature, Signer

from edgefleet_shared import strict_json
from edgefleet_shared.errors import InvalidInputError, TrustError

ENVELOPE_MAX_BYTES = 128 * 1024
MAX_SIGNATURES = 16  # each costs whoever reads it a verification


class _Signature(msgspec.Struct):
    keyid: str
    sig: str


class _Envelope(msgspec.Struct, rename="camel"):
    payload: str
    payload_type: str
    signatures: list[_Signature]


def seal(payload: bytes, payload_type: str, signer: Signer) -> bytes:
    """Return the JSON of an envelope around `payload`, signed once."""
    envelope = Envelope(payload, payload_type, {})
    envelope.sign(signer)
    return strict_json.encode(envelope.to_dict())


def read(data: bytes, payload_type: str) -> Envelope:
    """Read an envelope without believing it.

    Raises:
        InvalidInputError: Not an envelope (code `malformed`).
        TrustError: Of another payload type (code `payload_type`), or without signatures or with
            more than 16 (code `signature`).
    """
    fields = strict_json.decode(data, _Envelope, max_bytes=ENVELOPE_MAX_BYTES, what="DSSE envelope")
    if fields.payload_type != payload_type:
        raise TrustError(
            f"The envelope holds {fields.payload_type[:80]!r}, not {payload_type!r}.",
            code="payload_type",
        )
    if not 1 <= len(fields.signatures) <= MAX_SIGNATURES:
        raise TrustError(
            f"The envelope has {len(fields.signatures)} signatures; 1 to {MAX_SIGNATURES} hold.",
            code="signature",
        )
    try:
        payload = _bytes(fields.payload)
        signatures = {s.keyid: Signature(s.keyid, _bytes(s.sig).hex()) for s in fields.signatures}
    except ValueError as error:
        raise InvalidInputError(
            f"The DSSE envelope cannot be read: {error}.", code="malformed"
        ) from error
    if len(signatures) != len(fields.signatures):
        raise InvalidInputError("Two signatures name one key.", code="malformed")
    return Envelope(payload, payload_type, signatures)


def open_sealed(data: bytes, payload_type: str, key: Key) -> bytes:
    """Return the payload of an envelope that `key` signed.

    Raises:
        InvalidInputError: Not an envelope.
        TrustError: Other type, or no valid signature by `key`.
    """
    envelope = read(data, payload_type)
    signed = envelope.pae()
    # The key id is a hint that anyone can write; the role's key decides.
    for signature in envelope.signatures.values():
        try:
            key.verify_signature(Signature(key.keyid, signature.signature), signed)
        except UnverifiedSignatureError:
            continue
        payload: bytes = envelope.payload
        return payload
    raise TrustError("No signature on the envelope is valid.", code="signature")


def _bytes(text: str) -> bytes:
    """Decode base64 of the standard alphabet; two texts must not mean the same bytes."""
    data = base64.b64decode(text, validate=True)
    if base64.b64encode(data).decode() != text:
        raise ValueError("its base64 can be written in another way")
    return data

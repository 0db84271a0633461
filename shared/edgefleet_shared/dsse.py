"""DSSE envelopes: sign bytes, verify bytes, parse only what was verified.

Source: secure-systems-lab/dsse protocol.md 1.0.2; the envelope class is securesystemslib's.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import Key, Signature, Signer

from edgefleet_shared import strict_json
from edgefleet_shared.errors import InvalidInputError, TrustError

ENVELOPE_MAX_BYTES = 128 * 1024


def seal(payload: bytes, payload_type: str, signer: Signer) -> bytes:
    """Return the JSON of an envelope around `payload`, signed once."""
    envelope = Envelope(payload, payload_type, {})
    envelope.sign(signer)
    return json.dumps(envelope.to_dict(), separators=(",", ":")).encode()


def read(data: bytes, payload_type: str) -> Envelope:
    """Read an envelope without believing it.

    Raises:
        InvalidInputError: Not an envelope (code `malformed`).
        TrustError: Of another payload type (code `payload_type`), or without signatures.
    """
    fields = strict_json.decode(
        data, dict[str, Any], max_bytes=ENVELOPE_MAX_BYTES, what="DSSE envelope"
    )
    try:
        # base64 in Python skips foreign characters; two texts must not mean one payload.
        base64.b64decode(fields["payload"], validate=True)
        envelope = Envelope.from_dict(fields)
        signatures: dict[str, Signature] = envelope.signatures
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidInputError(
            f"The DSSE envelope cannot be read: {error!r}.", code="malformed"
        ) from error
    if envelope.payload_type != payload_type:
        raise TrustError(
            f"The envelope holds {str(envelope.payload_type)[:80]!r}, not {payload_type!r}.",
            code="payload_type",
        )
    if not signatures:
        raise TrustError("The envelope has no signature.", code="signature")
    return envelope


def open_sealed(data: bytes, payload_type: str, key: Key) -> bytes:
    """Return the payload of an envelope that `key` signed.

    Raises:
        InvalidInputError: Not an envelope.
        TrustError: Other type, or no valid signature by `key`.
    """
    envelope = read(data, payload_type)
    # The key id is a hint that anyone can write; the role's key decides.
    for signature in envelope.signatures.values():
        signature.keyid = key.keyid
        try:
            Envelope(envelope.payload, envelope.payload_type, {key.keyid: signature}).verify(
                [key], 1
            )
        except VerificationError:
            continue
        payload: bytes = envelope.payload
        return payload
    raise TrustError("No signature on the envelope is valid.", code="signature")

"""Renewal: a device's new key, vouched for by its old one; the answer, by the fleet's director.

Both are sealed, so that the transport need not be trusted. A request that is repeated, byte for
byte, is answered the same.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from securesystemslib.signer import Key
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Targets

from edgefleet_shared import dsse, strict_json
from edgefleet_shared.errors import TrustError
from edgefleet_shared.trust import DIRECTOR_ROLE

REQUEST_TYPE = "application/vnd.edgefleet.renewal.v1+json"
ANSWER_TYPE = "application/vnd.edgefleet.renewed.v1+json"
MAX_BYTES = 64 * 1024

Purpose = Literal["identity", "session"]
"""`identity`: the key in the request becomes the device's. `session`: a key for TLS alone, for a
device whose own key lies on a token that TLS cannot use; its identity stays."""


class Renewal(msgspec.Struct, frozen=True):
    """What a device asks. `csr` is a PKCS#10 request in PEM, signed by the key that is in it."""

    v: Literal[1]
    fleet: str
    device: str
    csr: str
    nonce: str
    ts: str
    purpose: Purpose = "identity"


class Renewed(msgspec.Struct, frozen=True):
    """What the fleet manager answers; `nonce` is the request's.

    `key` is the digest of the key that was certified, `certificate` its certificate, `ca` every
    authority that is trusted from now on, newest first; both are PEM.
    """

    v: Literal[1]
    fleet: str
    device: str
    key: str
    nonce: str
    ts: str
    certificate: str
    ca: str


class RenewAsk(msgspec.Struct, frozen=True):
    """Asks a device to renew if `key` is still its key; unsigned, for it decides nothing."""

    v: Literal[1]
    key: str


def open_request(data: bytes, key: Key, fleet: str, device: str) -> Renewal:
    """Return the request that a device's key has signed.

    Raises:
        InvalidInputError: Not such a request (code `malformed`).
        TrustError: Not signed by `key` (`signature`), or about somebody else (`wrong_device`).
    """
    body = dsse.open_sealed(data, REQUEST_TYPE, key)
    request = strict_json.decode(body, Renewal, max_bytes=MAX_BYTES, what="renewal")
    if (request.fleet, request.device) != (fleet, device):
        raise TrustError("The renewal is about another device.", code="wrong_device")
    return request


def open_answer(data: bytes, targets: Targets, request: Renewal, key: str) -> Renewed:
    """Return the answer that the fleet's director has signed.

    Args:
        data: The envelope.
        targets: The verified top-level targets role, which delegates to the director.
        request: What was asked.
        key: Digest of the key that was to be certified.

    Raises:
        InvalidInputError: Not such an answer (code `malformed`).
        TrustError: Not signed by the director (`signature`), or not the answer to this request
            (`wrong_answer`).
    """
    envelope = dsse.read(data, ANSWER_TYPE)
    try:
        targets.verify_delegate(DIRECTOR_ROLE, envelope.pae(), envelope.signatures)
    except (RepositoryError, ValueError) as error:
        raise TrustError(
            "The renewal's answer is not signed by the fleet's director.", code="signature"
        ) from error
    answer = strict_json.decode(envelope.payload, Renewed, max_bytes=MAX_BYTES, what="answer")
    asked = (request.fleet, request.device, request.nonce, key)
    if (answer.fleet, answer.device, answer.nonce, answer.key) != asked:
        raise TrustError("The answer is not the one to this renewal.", code="wrong_answer")
    return answer

"""Renew: a new key, signed for by the old one, and the certificate that comes back for it.

Three steps: `begin` writes down key and request, `ask` sends them, `install` verifies the answer
and switches. Interrupted anywhere, the same steps go on from what is on disk.
"""

from __future__ import annotations

import base64
import secrets
from typing import NamedTuple

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edgefleet_agent import registrar, rekeying
from edgefleet_agent.identity import Identity, key_digest, new_key, private_pem, request
from edgefleet_agent.rekeying import Pending
from edgefleet_agent.trust.acceptance import Acceptance
from edgefleet_shared import dsse, strict_json
from edgefleet_shared.errors import TrustError
from edgefleet_shared.renewal import (
    MAX_BYTES,
    REQUEST_TYPE,
    Renewal,
    Renewed,
    open_answer,
)
from edgefleet_shared.trust import format_time


class Answer(NamedTuple):
    """What came back: the director's envelope, and the catalog that says who that is."""

    sealed: bytes
    bundle: bytes


class _Body(msgspec.Struct, frozen=True):
    renewed: str
    bundle: str


def begin(identity: Identity, acceptance: Acceptance) -> Pending:
    """Return the renewal that is under way; without one, make a key and write a request down."""
    if found := rekeying.pending(identity.folder):
        return found
    key = new_key()
    asked = Renewal(
        v=1,
        fleet=identity.fleet,
        device=identity.device,
        csr=request(key, identity.device),
        nonce=secrets.token_urlsafe(24),
        ts=format_time(acceptance.now()),
        purpose="session" if identity.token else "identity",
    )
    sealed = dsse.seal(strict_json.encode(asked), REQUEST_TYPE, identity.signer)
    text = base64.b64encode(sealed).decode()
    begun = Pending(1, text, private_pem(key).decode(), key_digest(key))
    rekeying.note(identity.folder, begun)
    return begun


def ask(identity: Identity, begun: Pending) -> Answer:
    """Send a request and return the answer, not yet verified.

    Raises:
        UnavailableError: The fleet manager does not answer; the same request may be sent again.
        InvalidInputError: It refuses, or answers what cannot be read.
    """
    data = registrar.post(
        f"{identity.api}/v1/renewals",
        {"device": identity.device, "request": begun.sealed},
        "renewal",
        "If the device is no longer known, enrol it anew with a ticket.",
    )
    body = strict_json.decode(
        data, _Body, max_bytes=registrar.ANSWER_MAX_BYTES, what="answer to the renewal"
    )
    try:
        return Answer(
            base64.b64decode(body.renewed, validate=True),
            base64.b64decode(body.bundle, validate=True),
        )
    except ValueError as error:
        raise TrustError(
            f"The answer to the renewal is not base64: {error}.", code="malformed"
        ) from error


def install(
    identity: Identity, acceptance: Acceptance, begun: Pending, answer: Answer
) -> x509.Certificate:
    """Verify an answer and switch to the new key and certificate; return the certificate.

    Raises:
        TrustError: It is not the director's, not the answer to this request, or its certificate is
            for another key or somebody else.
        InvalidInputError: It cannot be read.
    """
    asked = _asked(begun)
    renewed = open_answer(answer.sealed, acceptance.director(answer.bundle), asked, begun.digest)
    certificate = _check(renewed, begun, identity)
    rekeying.switch(
        identity.folder,
        key=begun.key,
        certificate=renewed.certificate,
        ca=renewed.ca,
        session=asked.purpose == "session",
    )
    identity.reload()
    acceptance.rekey(identity.who)
    return certificate


def _asked(begun: Pending) -> Renewal:
    """Read the request that we wrote to our own disk."""
    envelope = dsse.read(base64.b64decode(begun.sealed), REQUEST_TYPE)
    return strict_json.decode(envelope.payload, Renewal, max_bytes=MAX_BYTES, what="renewal")


def _check(renewed: Renewed, begun: Pending, identity: Identity) -> x509.Certificate:
    try:
        certificate = x509.load_pem_x509_certificate(renewed.certificate.encode())
        x509.load_pem_x509_certificates(renewed.ca.encode())
        names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    except ValueError as error:
        raise TrustError(
            f"The renewed certificate cannot be read: {error}.", code="malformed"
        ) from error
    key = serialization.load_pem_private_key(begun.key.encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey), "we made it"
    if certificate.public_key() != key.public_key():
        raise TrustError("The renewed certificate is for another key.", code="wrong_key")
    if [name.value for name in names] != [identity.device]:
        raise TrustError("The renewed certificate is for another device.", code="wrong_device")
    return certificate

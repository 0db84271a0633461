"""Enrol once: a ticket and a signing request go out, a certificate and the trust root come back.

Order on disk: key, server's answer (`reply.json`), certificate and root, floors, `enrollment.json`.
Interrupted anywhere, the same command goes on from what is there; the ticket is used only once.
A device that is enrolled and comes with another ticket enrols anew: it may have been revoked. It
does so with a new key, which lies in `enrolling.json` until the answer is there, since somebody
else may have the old one. With a key on a token, or a ticket for a group, which knows it by its
key, the old one stays. With the ticket that it enrolled by, or one for a group, it asks again only
for lost floors or an expired certificate.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tuf.api.metadata import Metadata, Root

from edgefleet_agent import durable, registrar, rekeying
from edgefleet_agent.identity import (
    ENROLLMENT_MAX_BYTES,
    Enrollment,
    Identity,
    TransportInfo,
    key_digest,
    load_or_make_key,
    new_key,
    private_pem,
    request,
)
from edgefleet_agent.trust.floors import Floors, FloorStore
from edgefleet_shared import strict_json
from edgefleet_shared.errors import InvalidInputError, TrustError
from edgefleet_shared.identifiers import check_device, check_digest, check_name, sha256_digest

TICKET_MAX_BYTES = 4096
KEY_CHARACTERS = 12


class Ticket(msgspec.Struct, frozen=True):
    """What a ticket string holds; `root` is the digest of the fleet's first TUF root."""

    v: Literal[1]
    fleet: str
    device: str
    url: str
    secret: str
    root: str
    not_after: str
    group: str = ""


class Reply(msgspec.Struct, frozen=True):
    """What the fleet manager answers to an enrolment.

    `minimum` is the version of each role of the catalog as it stands: older ones, even unexpired,
    are not believed.
    """

    fleet: str
    device: str
    certificate: str
    ca: str
    root: str
    transport: TransportInfo
    blobs: str
    counter: int = 0
    minimum: dict[str, int] = {}


def read_ticket(text: str) -> Ticket:
    """Decode a ticket string.

    Raises:
        InvalidInputError: code `ticket`.
    """
    body = text.strip()
    try:
        data = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
        ticket = strict_json.decode(data, Ticket, max_bytes=TICKET_MAX_BYTES, what="ticket")
        check_name(ticket.fleet, "fleet")
        check_device(ticket.group or ticket.device)
        check_digest(ticket.root)
    except (binascii.Error, ValueError, InvalidInputError) as error:
        raise InvalidInputError(
            "This is not an enrolment ticket, or not the whole of one.",
            code="ticket",
            hint="Copy the whole string that 'edgefleet device ticket' printed.",
        ) from error
    return ticket


class _Begun(msgspec.Struct, frozen=True):
    """The key with which a device enrols anew, and the digest of the ticket for which it is."""

    v: Literal[1]
    ticket: str
    key: str


def enroll(
    state: Path,
    text: str,
    token: str = "",
    device: str = "",
    take: Callable[[], object] = lambda: None,
) -> Identity:
    """Enrol this device.

    Args:
        state: The state folder; `identity/` and `trust/` are made in it.
        text: The ticket string.
        token: RFC 7512 URI of the device's key if it shall lie on a token.
        device: The id to ask for with a ticket for a group; '' = from the ticket and the key.
        take: Called before an identity that is here is replaced; raises if it is in use.

    Returns:
        The identity, complete on disk.

    Raises:
        InvalidInputError: Bad ticket, or the server refuses it, or enrolled as somebody else.
        TrustError: What came back does not fit the ticket or the key.
        UnavailableError: The server does not answer.
    """
    ticket = read_ticket(text)
    folder = durable.make_folder(state / "identity")
    enrolled = (folder / "enrollment.json").exists()
    key = load_or_make_key(folder, token)
    ticket = _named(ticket, key, device, Identity(folder, token).device if enrolled else "")
    begun = None
    if enrolled:
        found, known = _already(state, ticket, token), _used(folder, text)
        if found and (known or ticket.group):
            return found
        take()
        if not (known or ticket.group or token):
            begun = _begin(folder, text)
            key = _key(begun)
    data = durable.read_bytes(folder / "reply.json")
    if data is None:
        data = _ask(ticket, text.strip(), request(key, ticket.device))
        durable.atomic_write(folder / "reply.json", data)
    try:
        reply = strict_json.decode(
            data, Reply, max_bytes=ENROLLMENT_MAX_BYTES, what="answer to the enrolment"
        )
        root = _check(reply, ticket, key)
    except (TrustError, InvalidInputError):
        # A refused answer must not be taken up by the next try.
        (folder / "reply.json").unlink(missing_ok=True)
        raise
    _write(state, reply, root, ticket.url, begun)
    durable.atomic_write(folder / "ticket", _digest(text).encode())
    for name in ("reply.json", "enrolling.json"):
        (folder / name).unlink(missing_ok=True)
    durable.fsync_folder(folder)
    return Identity(folder, token)


def _digest(text: str) -> str:
    return sha256_digest(text.strip().encode())


def _used(folder: Path, text: str) -> bool:
    """Return whether this is the ticket by which the device is what it is."""
    return durable.read_bytes(folder / "ticket") == _digest(text).encode()


def _begin(folder: Path, text: str) -> _Begun:
    """Return the new key for a ticket: the one it was given before, or one that is made now."""
    path = folder / "enrolling.json"
    if data := durable.read_bytes(path):
        found = strict_json.decode(
            data, _Begun, max_bytes=ENROLLMENT_MAX_BYTES, what="file identity/enrolling.json"
        )
        if found.ticket == _digest(text):
            return found
    (folder / "reply.json").unlink(missing_ok=True)  # the answer to another ticket
    begun = _Begun(1, _digest(text), private_pem(new_key()).decode())
    durable.atomic_write(path, strict_json.encode(begun), 0o600)
    return begun


def _named(ticket: Ticket, key: ec.EllipticCurvePrivateKey, wished: str, present: str) -> Ticket:
    """Return the ticket with the id that this device asks for or has."""
    if not ticket.group:
        if wished not in {"", ticket.device}:
            raise InvalidInputError(
                f"The ticket is for {ticket.device!r}, not for {wished!r}.",
                code="ticket",
                hint="Leave --device out; only a ticket for a group lets a device wish.",
            )
        return ticket
    digits = key_digest(key).removeprefix("sha256:")[:KEY_CHARACTERS]
    name = check_device(wished or present or f"{ticket.group}-{digits}")
    return msgspec.structs.replace(ticket, device=name)


def _already(state: Path, ticket: Ticket, token: str) -> Identity | None:
    """Return the identity that is here; None if a new enrolment has to mend it."""
    found = Identity(state / "identity", token)
    if (found.fleet, found.device) != (ticket.fleet, ticket.device):
        raise InvalidInputError(
            f"This device is already enrolled as {found.device!r} in fleet {found.fleet!r}.",
            code="already_enrolled",
            hint=f"Use another state_dir, or remove {state} to give up the old identity.",
        )
    lost = FloorStore(durable.make_folder(state / "trust")).current is None
    certificate = found.certificate()
    expired = certificate is None or certificate.not_valid_after_utc <= datetime.now(UTC)
    return None if lost or expired else found


def _ask(ticket: Ticket, text: str, csr: str) -> bytes:
    return registrar.post(
        f"{ticket.url.rstrip('/')}/v1/enrollments",
        {"ticket": text, "csr": csr, **({"device": ticket.device} if ticket.group else {})},
        "enrolment",
        "Ask for a new ticket; each is good once and for a limited time.",
    )


def _check(reply: Reply, ticket: Ticket, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the pinned root once everything in the answer fits the ticket and our key."""
    try:
        root = base64.b64decode(reply.root, validate=True)
        certificate = x509.load_pem_x509_certificate(reply.certificate.encode())
    except (ValueError, binascii.Error) as error:
        raise TrustError(
            f"The answer to the enrolment cannot be read: {error}.", code="malformed"
        ) from error
    if sha256_digest(root) != ticket.root:
        raise TrustError(
            "The trust root that came back is not the one that the ticket names.",
            code="wrong_root",
            hint="Somebody may sit between this device and the fleet manager.",
        )
    if (reply.fleet, reply.device) != (ticket.fleet, ticket.device):
        raise TrustError("The answer is for another device.", code="wrong_device")
    if certificate.public_key() != key.public_key():
        raise TrustError("The certificate is for another key.", code="wrong_key")
    return root


def _key(begun: _Begun) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(begun.key.encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey), "we made it"
    return key


def _write(state: Path, reply: Reply, root: bytes, api: str, begun: _Begun | None) -> None:
    folder = state / "identity"
    rekeying.forget(folder)
    if begun is None:
        durable.atomic_write(folder / "ca.crt", reply.ca.encode(), 0o644)
        durable.atomic_write(folder / "device.crt", reply.certificate.encode(), 0o644)
    durable.atomic_write(folder / "root.json", root, 0o644)
    floors = FloorStore(durable.make_folder(state / "trust"))
    if floors.current is None:
        floors.commit(_first_floors(reply, root))
    enrollment = Enrollment(1, reply.fleet, reply.device, reply.transport, reply.blobs, api)
    durable.atomic_write(folder / "enrollment.json", strict_json.encode(enrollment))
    if begun is not None:
        rekeying.switch(
            folder, key=begun.key, certificate=reply.certificate, ca=reply.ca, session=False
        )


def _first_floors(reply: Reply, root: bytes) -> Floors:
    """Return what a new device begins with: nothing older than the fleet's catalog of today."""
    online = {"root", "timestamp", "snapshot"}
    return Floors(
        root=max(Metadata[Root].from_bytes(root).signed.version, reply.minimum.get("root", 0)),
        timestamp=reply.minimum.get("timestamp", 0),
        snapshot=reply.minimum.get("snapshot", 0),
        targets={role: v for role, v in reply.minimum.items() if role not in online},
        counter=reply.counter,
    )

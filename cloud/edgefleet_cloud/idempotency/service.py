"""Claims of keys: made in the transaction that does what the request asks for."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from datetime import timedelta

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlmodel import Session, col, delete

from edgefleet_cloud.errors import ConflictError
from edgefleet_cloud.idempotency.tables import IdempotencyRow
from edgefleet_cloud.ports import Clock
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.times import format_time

KEPT = timedelta(hours=24)
MAX_LENGTH = 200
_NONCE = 12


class Repeated(Exception):  # noqa: N818 - no error: the answer is there already
    """The request was answered before; carries that answer."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        super().__init__("answered before")
        self.status = status
        self.headers = headers
        self.body = body


class Claim:
    """One request's key.

    Args:
        authorization: The caller's Authorization header, with which the answer is sealed.
        key: The Idempotency-Key header.
        request: Method, path, query and body.
        clock: Tells the time.

    Raises:
        InvalidInputError: The key cannot be used (code `idempotency_key`).
    """

    def __init__(self, authorization: str, key: str, request: bytes, clock: Clock) -> None:
        if not 1 <= len(key) <= MAX_LENGTH or not key.isascii() or not key.isprintable():
            raise InvalidInputError(
                "The Idempotency-Key cannot be used.",
                code="idempotency_key",
                hint=f"Send 1 to {MAX_LENGTH} printable ASCII characters, for example a UUID.",
            )
        self._key = key
        self._request = hashlib.sha256(request).hexdigest()
        secret = b"\0".join((b"edgefleet answer", authorization.encode(), request))
        self._seal = AESGCM(hashlib.sha256(secret).digest())
        self._clock = clock
        self.made = False
        # A stranger's key is for this very request, so that none spoils another's.
        self._caller = hashlib.sha256(b"stranger\0" + request).hexdigest()

    def of(self, actor: str) -> None:
        """Say whose key it is; keys of others are others'."""
        self._caller = hashlib.sha256(actor.encode()).hexdigest()

    def __call__(self, session: Session) -> None:
        """Claim the key in the request's own transaction.

        Raises:
            Repeated: The same request was answered before.
            ConflictError: It is being answered, or its answer was lost (`idempotency_unknown`).
            InvalidInputError: The key was used for another request (`idempotency_mismatch`).
        """
        row = self._row(session)
        if row is None:
            now = format_time(self._clock())
            session.add(
                IdempotencyRow(
                    caller=self._caller, key=self._key, request=self._request, created=now
                )
            )
            self.made = True
            return
        if row.request != self._request:
            raise InvalidInputError(
                "The Idempotency-Key was used for another request.",
                code="idempotency_mismatch",
                hint="Use a fresh key for each request; repeat a request unchanged.",
            )
        body = self._opened(row)
        if not row.status or body is None:
            raise ConflictError(
                "The request with this Idempotency-Key happened; its answer is not known yet.",
                code="idempotency_unknown",
                hint="Repeat it in a moment; if it stays so, GET what it should have made.",
            )
        raise Repeated(row.status, row.headers, body)

    def answer(
        self, session: Session, status: int, headers: Mapping[str, str], body: bytes
    ) -> None:
        """Remember the answer, if the claim was committed.

        Answers hold tokens and tickets: what is stored is sealed by what the request held.
        """
        if row := self._row(session):
            nonce = secrets.token_bytes(_NONCE)
            sealed = nonce + self._seal.encrypt(nonce, body, None)
            row.status, row.headers, row.body = status, dict(headers), sealed
            session.add(row)

    def _opened(self, row: IdempotencyRow) -> bytes | None:
        try:
            return self._seal.decrypt(row.body[:_NONCE], row.body[_NONCE:], None)
        except (InvalidTag, ValueError):  # other credentials of the same caller, or nothing yet
            return None

    def _row(self, session: Session) -> IdempotencyRow | None:
        return session.get(IdempotencyRow, (self._caller, self._key))


def purge(session: Session, clock: Clock) -> None:
    """Forget what is older than a day."""
    old = format_time(clock() - KEPT)
    session.exec(delete(IdempotencyRow).where(col(IdempotencyRow.created) < old))

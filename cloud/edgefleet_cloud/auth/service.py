"""Bearer tokens: made from 32 random bytes, known by their hash, revoked but never forgotten."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from pathlib import Path

from sqlmodel import Session

from edgefleet_cloud.auth import repository
from edgefleet_cloud.auth.tables import TokenRow
from edgefleet_cloud.errors import ConflictError, NotFoundError, UnauthenticatedError
from edgefleet_cloud.ports import Clock
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.identifiers import check_name
from edgefleet_shared.times import format_time

ADMIN = "admin"
_PREFIX = "eft_"
_MIN_LENGTH = 20


class TokenService:
    """Makes, checks and revokes tokens.

    Args:
        clock: Tells the time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def create(self, session: Session, name: str) -> str:
        """Make a token and return it; it cannot be shown again.

        Raises:
            InvalidInputError: The name cannot be used.
            ConflictError: The name was used before; events may speak of it.
        """
        check_name(name, "token")
        if repository.by_name(session, name):
            raise ConflictError(
                f"There was a token {name!r} before.", code="already_exists", hint="Choose another."
            )
        token = _PREFIX + secrets.token_urlsafe(32)
        self._store(session, name, token)
        return token

    def check(self, session: Session, token: str) -> TokenRow:
        """Return whose token it is.

        Raises:
            UnauthenticatedError: Unknown or revoked.
        """
        row = repository.by_hash(session, _hash(token))
        if row is None or row.revoked:
            raise UnauthenticatedError(
                "The token is not valid.",
                hint="Ask for one made by `edgefleet-cloud token create NAME`.",
            )
        return row

    def revoke(self, session: Session, name: str) -> None:
        """Make a token invalid from now on; again is fine.

        Raises:
            NotFoundError: There is none of that name.
        """
        row = repository.by_name(session, name)
        if row is None:
            raise NotFoundError(
                f"There is no token {name[:80]!r}.", hint="`edgefleet-cloud token list` shows all."
            )
        row.revoked = row.revoked or format_time(self._clock())
        session.add(row)

    def every(self, session: Session) -> Sequence[TokenRow]:
        """Return all tokens, by name."""
        return repository.every(session)

    def import_file(self, session: Session, path: Path) -> None:
        """Accept the token in a file as that of `admin`; a changed file replaces it.

        A revoked token stays revoked: only another text in the file makes a new one. Without a
        file nothing changes.

        Raises:
            InvalidInputError: The file cannot be read, or holds no token.
        """
        try:
            token = path.read_text().strip()
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise InvalidInputError(
                f"The admin token file {path} cannot be read: {error}.", code="configuration"
            ) from error
        if len(token) < _MIN_LENGTH or not token.isascii() or not token.isprintable():
            raise InvalidInputError(
                f"The admin token file {path} holds no token.",
                code="configuration",
                hint=f"It needs one line of at least {_MIN_LENGTH} printable ASCII characters.",
            )
        if repository.by_hash(session, _hash(token)):
            return
        if (row := repository.by_name(session, ADMIN)) is not None:
            session.delete(row)
            session.flush()
        self._store(session, ADMIN, token)

    def _store(self, session: Session, name: str, token: str) -> None:
        session.add(TokenRow(name=name, hash=_hash(token), created=format_time(self._clock())))


def _hash(token: str) -> str:
    # 256 random bits need no slow hash: there is nothing to guess.
    return hashlib.sha256(token.encode()).hexdigest()

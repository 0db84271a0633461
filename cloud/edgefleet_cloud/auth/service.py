"""Bearer tokens: made from 32 random bytes, known by their hash, revoked but never forgotten."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from sqlmodel import Session

from edgefleet_cloud.auth import repository
from edgefleet_cloud.auth.caller import Binding, Caller, describe, read_scope
from edgefleet_cloud.auth.roles import Role
from edgefleet_cloud.auth.tables import TokenRow
from edgefleet_cloud.errors import (
    ConflictError,
    ForbiddenError,
    NotFoundError,
    UnauthenticatedError,
)
from edgefleet_cloud.ports import Clock, EventSink
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.identifiers import check_name
from edgefleet_shared.steps import Step
from edgefleet_shared.times import format_time

ADMIN = "admin"
ACTOR = "token/"
LIFE = timedelta(days=90)
MAX_DAYS = 366
COARSE = timedelta(hours=1)
"""How exactly it is known when a token was last used: writing each use would cost a disk flush."""
_PREFIX = "eft_"
_MIN_LENGTH = 20


class Wish(NamedTuple):
    """A token to make; `life` None is for ever."""

    name: str
    role: Role = Role.VIEWER
    scope: str = ""
    life: timedelta | None = LIFE


class TokenService:
    """Makes, checks and revokes tokens.

    Args:
        clock: Tells the time.
        events: Told of what is made and revoked.
    """

    def __init__(self, clock: Clock, events: EventSink) -> None:
        self._clock = clock
        self._events = events

    def create(
        self, session: Session, wish: Wish, actor: str, maker: Caller | None = None
    ) -> tuple[TokenRow, str]:
        """Make a token; its text, the second of the answer, cannot be shown again.

        Args:
            session: The caller's transaction.
            wish: What it shall be.
            actor: Who makes it.
            maker: The caller of the API, who cannot give more than they hold; None: the server's
                own command line.

        Raises:
            InvalidInputError: The name or scope cannot be used, or it would live too long.
            ForbiddenError: It would be stronger than its maker (code `stronger`).
            ConflictError: The name was used before; events may speak of it.
        """
        check_name(wish.name, "token")
        _check_life(wish.life, for_ever=maker is None)
        scope = read_scope(wish.role, wish.scope)
        if maker is not None and not maker.may_give(Binding(wish.role, scope)):
            raise ForbiddenError(
                f"A token of role {wish.role} in this scope could do more than {actor} may.",
                code="stronger",
                hint="Give it your own role and scope, or less.",
            )
        if repository.by_name(session, wish.name):
            raise ConflictError(
                f"There was a token {wish.name!r} before.",
                code="already_exists",
                hint="Choose another.",
            )
        token, now = _PREFIX + secrets.token_urlsafe(32), self._clock()
        row = TokenRow(
            name=wish.name,
            hash=_hash(token),
            role=wish.role,
            scope=describe(scope),
            maker=actor,
            created=format_time(now),
            expires=format_time(now + wish.life) if wish.life else "",
        )
        session.add(row)
        session.flush()
        within = f" within {row.scope}" if row.scope else ""
        until = f", good until {row.expires}" if row.expires else ""
        said = f"Token {row.name} was made: {row.role}{within}{until}."
        self._tell(session, row, "created", said, actor)
        return row, token

    def check(self, session: Session, token: str) -> tuple[Caller, TokenRow]:
        """Return whose token it is.

        Raises:
            UnauthenticatedError: Unknown, revoked or expired.
        """
        row = repository.by_hash(session, _hash(token))
        if row is None or not self.holds(row):
            raise UnauthenticatedError(
                "The token is not valid.",
                hint="It is unknown, revoked or expired; `edgefleet token create` makes one.",
            )
        try:
            held = Binding(role := Role(row.role), read_scope(role, row.scope))
        except (ValueError, InvalidInputError) as error:  # of another version of this program
            raise UnauthenticatedError(
                f"The role or scope of token {row.name} is not known here.",
                hint="Revoke it and make another.",
            ) from error
        return Caller(f"{ACTOR}{row.name}", (held,), expires=row.expires), row

    def stands(self, session: Session, caller: Caller) -> bool:
        """Return whether a caller who was admitted before would be admitted still."""
        if caller.expires and caller.expires <= format_time(self._clock()):
            return False
        if not caller.actor.startswith(ACTOR):
            return True
        row = repository.by_name(session, caller.actor.removeprefix(ACTOR))
        return row is not None and self.holds(row)

    def holds(self, row: TokenRow) -> bool:
        """Return whether a token is neither revoked nor expired."""
        return not row.revoked and (not row.expires or format_time(self._clock()) < row.expires)

    def used(self, session: Session, name: str) -> None:
        """Remember that a token was used now."""
        if row := repository.by_name(session, name):
            row.used = format_time(self._clock())
            session.add(row)

    def worth_noting(self, row: TokenRow) -> bool:
        """Return whether a token's last use is too long ago to stand as it is."""
        return row.used < format_time(self._clock() - COARSE)

    def get(self, session: Session, name: str) -> TokenRow:
        """Return a token, revoked or not.

        Raises:
            NotFoundError: There is none of that name.
        """
        row = repository.by_name(session, name)
        if row is None:
            raise NotFoundError(
                f"There is no token {name[:80]!r}.", hint="`edgefleet token list` shows all."
            )
        return row

    def revoke(self, session: Session, name: str, actor: str) -> TokenRow:
        """Make a token invalid from now on; again is fine.

        Raises:
            NotFoundError: There is none of that name.
        """
        row = self.get(session, name)
        if not row.revoked:
            before = describe_token(row)
            row.revoked = format_time(self._clock())
            session.add(row)
            self._tell(session, row, "revoked", f"Token {name} was revoked.", actor, before)
        return row

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
        before = None
        if (row := repository.by_name(session, ADMIN)) is not None:
            before = describe_token(row)
            session.delete(row)
            session.flush()
        now = format_time(self._clock())
        row = TokenRow(name=ADMIN, hash=_hash(token), role=Role.ADMIN, created=now)
        session.add(row)
        self._tell(session, row, "created", "The admin's token was read from its file.", "", before)

    def _tell(
        self,
        session: Session,
        row: TokenRow,
        what: str,
        message: str,
        actor: str,
        before: dict[str, str] | None = None,
    ) -> None:
        self._events.record(
            session,
            type=f"token.{what}",
            step=Step.ACCEPT,
            subject=f"tokens/{row.name}",
            message=message,
            actor=actor,
            data={"role": row.role, "scope": row.scope, "expires": row.expires},
            before=before,
            after=describe_token(row),
        )


def describe_token(row: TokenRow) -> dict[str, str]:
    """Return what events say of a token: never its hash."""
    return row.model_dump(include={"role", "scope", "maker", "created", "expires", "revoked"})


def _check_life(life: timedelta | None, *, for_ever: bool) -> None:
    if life is None and for_ever:
        return
    if life is None or not timedelta(0) < life <= timedelta(days=MAX_DAYS):
        raise InvalidInputError(
            f"A token lives 1 to {MAX_DAYS} days.",
            code="token_life",
            hint="One that never expires is made at the server: `edgefleet-cloud token create`.",
        )


def _hash(token: str) -> str:
    # 256 random bits need no slow hash: there is nothing to guess.
    return hashlib.sha256(token.encode()).hexdigest()

"""The one door: a bearer token or a device's statement in, a caller out; who guesses must wait."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from edgefleet_cloud.auth.caller import Caller
from edgefleet_cloud.auth.devices import DeviceAccess
from edgefleet_cloud.auth.limits import FailureLimit, Network, client_of
from edgefleet_cloud.auth.oidc.claims import Oidc, looks_like
from edgefleet_cloud.auth.service import TokenService
from edgefleet_cloud.database import Database
from edgefleet_cloud.errors import ForbiddenError, UnauthenticatedError
from edgefleet_cloud.ports import EventSink
from edgefleet_shared import access
from edgefleet_shared.errors import InvalidInputError, TrustError, UnavailableError
from edgefleet_shared.steps import Step

_REMEMBERED = 1000


class Gate:
    """Tells who asks.

    Args:
        database: Where tokens are known.
        tokens: Checks API tokens.
        devices: Checks devices' statements.
        limit: Counts failures.
        events: Told of each lock-out.
        proxies: Networks of proxies whose X-Forwarded-For is believed.
        oidc: Checks the tokens of an OpenID provider, if there is one.
    """

    def __init__(
        self,
        database: Database,
        tokens: TokenService,
        devices: DeviceAccess,
        limit: FailureLimit,
        events: EventSink,
        proxies: Sequence[Network] = (),
        oidc: Oidc | None = None,
    ) -> None:
        self._database = database
        self._tokens = tokens
        self._devices = devices
        self._limit = limit
        self._events = events
        self._proxies = proxies
        self._oidc = oidc
        # Who was right before is let in while others guess from the same address.
        self._right: OrderedDict[bytes, None] = OrderedDict()
        self._turn = threading.Lock()

    def client(self, peer: str, forwarded: str) -> str:
        """Return who failures of a connection count for."""
        return client_of(peer, forwarded, self._proxies)

    def check(self, token: str, client: str) -> Caller:
        """Return the caller behind a bearer token.

        Raises:
            UnauthenticatedError: It does not hold.
            TooManyAttemptsError: The client has failed too often; its token was not looked at.
        """
        digest = hashlib.sha256(token.encode()).digest()
        if digest not in self._right:
            self._limit.admit(client)
        try:
            caller = self._caller(token)
        except UnauthenticatedError:
            with self._turn:
                self._right.pop(digest, None)
            self._count(client, "a token")
            raise
        with self._turn:
            self._right[digest] = None
            self._right.move_to_end(digest)
            while len(self._right) > _REMEMBERED:
                self._right.popitem(last=False)
        return caller

    def check_device(self, header: str, client: str) -> Caller:
        """Return the device that signed a statement.

        A site's devices share an address, and one with a wrong clock must not shut out the rest:
        each is counted for itself.

        Raises:
            UnauthenticatedError: It does not hold.
            TooManyAttemptsError: It has failed too often; the statement was not looked at.
        """
        mine = f"{client} {access.claimed_device(header)}"
        self._limit.admit(mine)
        try:
            return Caller(f"devices/{self._devices.check(header)}", (), device=True)
        except UnauthenticatedError:
            self._count(mine, "a device's statement")
            raise

    @contextmanager
    def attempt(self, client: str, what: str) -> Iterator[None]:
        """Guard a block that lets somebody in by `what`, for example `a ticket`.

        Raises:
            TooManyAttemptsError: The client has failed too often.
        """
        mine = f"{client} {what}"
        self._limit.admit(mine)
        try:
            yield
        except (ForbiddenError, InvalidInputError, TrustError):
            self._count(mine, what)
            raise

    def stands(self, caller: Caller) -> bool:
        """Return whether a caller who was admitted before would be admitted still."""
        with self._database.read() as session:
            return self._tokens.stands(session, caller)

    def _caller(self, token: str) -> Caller:
        if self._oidc and looks_like(token):
            return self._oidc.check(token)
        with self._database.read() as session:
            caller, row = self._tokens.check(session, token)
        if self._tokens.worth_noting(row):
            # A busy database is no reason to refuse: the next use is noted as well.
            with contextlib.suppress(UnavailableError), self._database.write() as session:
                self._tokens.used(session, row.name)
        return caller

    def _count(self, client: str, what: str) -> None:
        if not self._limit.failed(client):
            return
        address = client.partition(" ")[0]
        with contextlib.suppress(UnavailableError), self._database.write() as session:
            self._events.record(
                session,
                type="auth.locked_out",
                step=Step.ACCEPT,
                subject=f"clients/{address}",
                message=f"{address} failed too often with {what}; it must wait.",
                data={"client": client[:200], "with": what},
            )

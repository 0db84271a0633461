"""The one door: a bearer token in, a caller out."""

from __future__ import annotations

import contextlib

from edgefleet_cloud.auth.caller import Caller
from edgefleet_cloud.auth.service import TokenService
from edgefleet_cloud.database import Database
from edgefleet_shared.errors import UnavailableError


class Gate:
    """Tells who a bearer token stands for.

    Args:
        database: Where tokens are known.
        tokens: Checks them.
    """

    def __init__(self, database: Database, tokens: TokenService) -> None:
        self._database = database
        self._tokens = tokens

    def check(self, token: str) -> Caller:
        """Return the caller behind a bearer token.

        Raises:
            UnauthenticatedError: It does not hold.
        """
        with self._database.read() as session:
            caller, row = self._tokens.check(session, token)
        if self._tokens.worth_noting(row):
            # A busy database is no reason to refuse: the next use is noted as well.
            with contextlib.suppress(UnavailableError), self._database.write() as session:
                self._tokens.used(session, row.name)
        return caller

    def stands(self, caller: Caller) -> bool:
        """Return whether a caller who was admitted before would be admitted still."""
        with self._database.read() as session:
            return self._tokens.stands(session, caller)

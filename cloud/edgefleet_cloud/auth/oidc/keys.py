"""The provider's keys: found by discovery, cached, fetched again when a new one appears."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import PyJWK, PyJWTError

from edgefleet_cloud.auth.oidc.fetch import Fetch, is_safe
from edgefleet_cloud.errors import UnauthenticatedError
from edgefleet_shared.errors import UnavailableError

_log = logging.getLogger(__name__)
FRESH_S = 600.0
"""A key that the provider no longer shows counts for at most this long while it can be asked."""
STALE_S = 24 * 3600.0
"""Without the provider its keys count for this long: whoever cuts us off keeps no key for ever."""
AGAIN_S, FIRST_AGAIN_S = 30.0, 5.0
"""Between two questions to the provider, whoever sends whatever; and while nothing is known yet."""
MIN_RSA_BITS = 2048
KINDS = frozenset({"RSA", "EC", "OKP"})


class KeyCache:
    """Finds keys by their id.

    Args:
        issuer: The provider, exactly as it names itself.
        fetch: Fetches its documents.
        clock: Seconds that only grow.
    """

    def __init__(
        self, issuer: str, fetch: Fetch, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._issuer = issuer
        self._fetch = fetch
        self._clock = clock
        self._keys: Mapping[str, PyJWK] = {}
        self._fetched = self._asked = float("-inf")
        self._turn = threading.Lock()

    def find(self, kid: str) -> PyJWK:
        """Return the key of an id.

        Raises:
            UnauthenticatedError: The provider shows no such key.
            UnavailableError: Its keys are not known, or have not been for a day.
        """
        if kid not in self._keys or self._clock() - self._fetched >= FRESH_S:
            self._refresh()
        if self._clock() - self._fetched > STALE_S:
            raise UnavailableError(
                "The OpenID provider does not answer, and its keys are not known.",
                code="oidc_unavailable",
                hint="Try again in a moment, or use an API token.",
            )
        if kid not in self._keys:
            raise UnauthenticatedError(
                "The token is signed by a key that the provider does not show.",
                hint="Log in again.",
            )
        return self._keys[kid]

    def _refresh(self) -> None:
        # One request asks the provider; the others go on with what is known, however little, so
        # that a provider that hangs costs one thread.
        if not self._turn.acquire(blocking=False):
            return
        try:
            wait = AGAIN_S if self._keys else FIRST_AGAIN_S
            if self._clock() - self._asked < wait:
                return
            self._asked = self._clock()
            self._keys = self._ask()
            self._fetched = self._clock()
        except UnavailableError as error:
            _log.warning("The OpenID provider's keys stay as they are: %s", error)
        finally:
            self._turn.release()

    def _ask(self) -> Mapping[str, PyJWK]:
        about = _object(self._fetch(f"{self._issuer.rstrip('/')}/.well-known/openid-configuration"))
        place = about.get("jwks_uri")
        if about.get("issuer") != self._issuer:
            raise _odd(f"it names itself {str(about.get('issuer'))[:200]!r}")
        if not isinstance(place, str) or not is_safe(place):
            raise _odd("its jwks_uri is not https")
        found = _object(self._fetch(place)).get("keys")
        keys = {}
        for each in found if isinstance(found, list) else []:
            if (key := _usable(each)) is not None:
                keys[str(each["kid"])] = key
        if not keys:
            raise _odd("it shows no key that can be used")
        return keys


def _usable(entry: Any) -> PyJWK | None:
    """Return a public key for signatures, or None: symmetric and short keys are none."""
    if not isinstance(entry, dict) or not isinstance(entry.get("kid"), str):
        return None
    if entry.get("kty") not in KINDS or entry.get("use", "sig") != "sig":
        return None
    try:
        key = PyJWK(entry)
    except (PyJWTError, ValueError, KeyError):
        return None
    if isinstance(key.key, RSAPublicKey) and key.key.key_size < MIN_RSA_BITS:
        return None
    return key


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError as error:
        raise _odd("it does not answer in JSON") from error
    if not isinstance(found, dict):
        raise _odd("it does not answer with an object")
    return found


def _odd(why: str) -> UnavailableError:
    return UnavailableError(f"The OpenID provider is not usable: {why}.", code="oidc_unavailable")

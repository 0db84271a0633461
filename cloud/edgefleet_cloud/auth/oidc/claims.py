"""What a provider's token must say, and whom it means."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import jwt

from edgefleet_cloud.auth.caller import Binding, Caller
from edgefleet_cloud.auth.oidc.keys import KeyCache
from edgefleet_cloud.errors import UnauthenticatedError
from edgefleet_shared.times import format_time

ACTOR = "oidc/"
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA")
"""Signatures alone: neither `none`, nor one whose key both sides know."""
MAX_CHARACTERS = 16 * 1024
TYPES = frozenset({"jwt", "at+jwt", "application/at+jwt"})
_SUBJECT = re.compile(r"[\x21-\x7e]{1,200}")


class Given(NamedTuple):
    """A binding for whoever's `claim` has a `value`."""

    claim: str
    value: str
    binding: Binding


class Rules(NamedTuple):
    """What is demanded of tokens; the names are those of cloud.toml."""

    issuer: str
    audience: str
    client_id: str
    subject_claim: str
    leeway_s: int
    given: Sequence[Given]


class Oidc:
    """Checks tokens of one provider.

    Args:
        rules: What they must say.
        keys: Finds the provider's keys.
    """

    def __init__(self, rules: Rules, keys: KeyCache) -> None:
        self._rules = rules
        self._keys = keys

    def check(self, token: str) -> Caller:
        """Return the caller whom a token means.

        Raises:
            UnauthenticatedError: It does not hold.
            UnavailableError: The provider's keys are not known.
        """
        rules = self._rules
        try:
            header = _header(token)
            # Looked at before it is believed: strangers' tokens do not make us ask the provider.
            if jwt.decode(token, options={"verify_signature": False}).get("iss") != rules.issuer:
                raise _refused("it is not this provider's")
            claims = jwt.decode(
                token,
                self._keys.find(header["kid"]),
                algorithms=ALGORITHMS,
                audience=rules.audience,
                issuer=rules.issuer,
                leeway=rules.leeway_s,
                options={"require": ["exp", "iat", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise _refused(str(error)) from error
        self._check_party(claims)
        return Caller(
            ACTOR + subject(claims, rules.subject_claim),
            tuple(each.binding for each in rules.given if each.value in values(claims, each.claim)),
            expires=format_time(datetime.fromtimestamp(int(claims["exp"]), UTC)),
        )

    def _check_party(self, claims: Mapping[str, Any]) -> None:
        """Check for whom the provider made it: `azp`, in access tokens `client_id`."""
        if not self._rules.client_id:
            return
        if claims.get("azp", claims.get("client_id")) != self._rules.client_id:
            raise _refused("it was made for another client")


def looks_like(token: str) -> bool:
    """Return whether a bearer token may be a provider's."""
    return token.startswith("ey") and token.count(".") == 2


def subject(claims: Mapping[str, Any], claim: str) -> str:
    """Return whom a token means.

    Raises:
        UnauthenticatedError: Nobody, or an address that the provider has not verified.
    """
    found = claims.get(claim)
    if claim == "email" and claims.get("email_verified") is not True:
        raise _refused("its email address is not verified")
    if not isinstance(found, str) or not _SUBJECT.fullmatch(found):
        raise _refused(f"its {claim} names nobody")
    return found


def values(claims: Mapping[str, Any], path: str) -> frozenset[str]:
    """Return the values of a claim, `a.b` being claim b in claim a; text is split at spaces."""
    found: Any = claims.get(path)
    if found is None:
        found = claims
        for part in path.split("."):
            found = found.get(part) if isinstance(found, dict) else None
    if path == "email" and claims.get("email_verified") is not True:
        return frozenset()
    if isinstance(found, str):
        found = found.split()
    return (
        frozenset(v for v in found if isinstance(v, str))
        if isinstance(found, list)
        else frozenset()
    )


def _header(token: str) -> dict[str, Any]:
    if len(token) > MAX_CHARACTERS:
        raise _refused("it is too long")
    header = jwt.get_unverified_header(token)
    if header.get("alg") not in ALGORITHMS:
        raise _refused("its algorithm is not one that is taken")
    if not isinstance(header.get("kid"), str) or "crit" in header:
        raise _refused("it does not name its key, or demands what is not known here")
    if str(header.get("typ", "JWT")).lower() not in TYPES:
        raise _refused("it is a token of another type")
    return header


def _refused(why: str) -> UnauthenticatedError:
    return UnauthenticatedError(
        f"The provider's token does not hold: {why}.", hint="Log in again: `edgefleet login`."
    )

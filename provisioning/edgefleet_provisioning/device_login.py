"""Logging in at an OpenID provider from a terminal: the device flow (RFC 8628).

The browser may be on another machine, so it works over SSH, and nothing has to listen here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx

from edgefleet_provisioning.errors import RefusedError, UnreachableError
from edgefleet_shared.errors import InvalidInputError

GRANT = "urn:ietf:params:oauth:grant-type:device_code"
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_SLOWER_S = 5


class Wish(NamedTuple):
    """What to log in for; `audience` '' leaves it to the provider."""

    issuer: str
    client_id: str
    audience: str
    scope: str


class Prompt(NamedTuple):
    """What the person does next: open the address, and compare or enter the code."""

    address: str
    code: str


class Granted(NamedTuple):
    """An access token, and for how many seconds it holds."""

    token: str
    life_s: int


def log_in(
    wish: Wish, show: Callable[[Prompt], None], sleep: Callable[[float], None] = time.sleep
) -> Granted:
    """Have somebody log in, and return the access token.

    Args:
        wish: Where and what for.
        show: Shows the person what to do; called once.
        sleep: Waits.

    Raises:
        InvalidInputError: The issuer is not https, or has no device flow.
        UnreachableError: It does not answer.
        RefusedError: It, or the person, says no.
    """
    with httpx.Client(timeout=30) as http:
        about = _discover(http, wish.issuer)
        form = {"client_id": wish.client_id, "scope": wish.scope}
        if wish.audience:
            form["resource"] = wish.audience
        asked = _post(http, about["device_authorization_endpoint"], form)
        address = asked.get("verification_uri_complete") or asked.get("verification_uri")
        show(Prompt(str(address), str(asked.get("user_code"))))
        return _poll(http, about["token_endpoint"], wish, asked, sleep)


def _discover(http: httpx.Client, issuer: str) -> dict[str, str]:
    about = _get(http, f"{_safe(issuer).rstrip('/')}/.well-known/openid-configuration")
    if about.get("issuer") != issuer:
        raise _odd(f"it names itself {str(about.get('issuer'))[:200]!r}, not {issuer!r}")
    if not isinstance(about.get("device_authorization_endpoint"), str):
        raise InvalidInputError(
            f"{issuer} offers no device flow.",
            code="no_device_flow",
            hint="Give an access token that you have otherwise with --token.",
        )
    return {key: _safe(about[key]) for key in ("device_authorization_endpoint", "token_endpoint")}


def _poll(
    http: httpx.Client,
    place: str,
    wish: Wish,
    asked: dict[str, Any],
    sleep: Callable[[float], None],
) -> Granted:
    interval = float(asked.get("interval") or 5)
    until = time.monotonic() + float(asked.get("expires_in") or 600)
    form = {"grant_type": GRANT, "client_id": wish.client_id, "device_code": asked["device_code"]}
    if wish.audience:
        form["resource"] = wish.audience
    while time.monotonic() < until:
        sleep(interval)
        answer = _send(http, "POST", place, data=form)
        document = _document(answer)
        if answer.is_success and isinstance(document.get("access_token"), str):
            return Granted(document["access_token"], int(document.get("expires_in") or 300))
        error = document.get("error")
        if error == "slow_down":
            interval += _SLOWER_S
        elif error != "authorization_pending":
            raise _refused(document)
    raise RefusedError("Nobody logged in in time.", code="login", hint="Begin again.")


def _get(http: httpx.Client, url: str) -> dict[str, Any]:
    answer = _send(http, "GET", url)
    if not answer.is_success:
        raise _odd(f"{url} answers {answer.status_code}")
    return _document(answer)


def _post(http: httpx.Client, url: str, form: dict[str, str]) -> dict[str, Any]:
    answer = _send(http, "POST", url, data=form)
    document = _document(answer)
    if not answer.is_success:
        raise _refused(document)
    return document


def _send(http: httpx.Client, method: str, url: str, **options: Any) -> httpx.Response:
    try:
        return http.request(method, url, **options)
    except httpx.HTTPError as error:
        raise UnreachableError(
            f"The OpenID provider does not answer: {str(error) or repr(error)}.",
            hint="Is the issuer right?",
        ) from error


def _document(answer: httpx.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError as error:
        raise _odd("it does not answer in JSON") from error
    return found if isinstance(found, dict) else {}


def _safe(url: str) -> str:
    try:
        parts = urlsplit(url)
        local = parts.scheme == "http" and parts.hostname in LOOPBACK
    except ValueError:
        local, parts = False, urlsplit("")
    if not (local or (parts.scheme == "https" and parts.hostname)):
        raise InvalidInputError(
            f"{url[:200]!r} is not https.",
            code="invalid_address",
            hint="A provider is asked by https, or on this very machine.",
        )
    return url


def _odd(why: str) -> RefusedError:
    return RefusedError(f"The OpenID provider is not usable: {why}.", code="login")


def _refused(document: dict[str, Any]) -> RefusedError:
    why = document.get("error_description") or document.get("error") or "without a word"
    return RefusedError(f"The OpenID provider refuses: {str(why)[:300]}.", code="login")

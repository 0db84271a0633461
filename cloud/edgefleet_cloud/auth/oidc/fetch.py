"""Fetching a provider's documents: from one host, by https, in bounded time and size."""

from __future__ import annotations

import ssl
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from urllib.parse import urlsplit

from edgefleet_shared.errors import UnavailableError

TIMEOUT_S = 5.0
MAX_BYTES = 256 * 1024
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})

Fetch = Callable[[str], bytes]
"""Returns the document at a URL; raises UnavailableError."""


def is_safe(url: str) -> bool:
    """Return whether a URL is https, or http to this very machine."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    return bool(host) and (parts.scheme == "https" or (parts.scheme == "http" and host in LOOPBACK))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows none: keys come from where the issuer says, or not at all."""

    def redirect_request(self, *_args: object) -> None:
        """Follow none."""


def fetcher(ca: str = "") -> Fetch:
    """Return what fetches.

    Args:
        ca: PEM file of the CA behind the provider's certificate; '' is the system's.
    """
    context = ssl.create_default_context(cafile=ca or None)
    opener = urllib.request.build_opener(
        urllib.request.HTTPSHandler(context=context), _NoRedirect()
    )

    def fetch(url: str) -> bytes:
        if not is_safe(url):
            raise UnavailableError(f"{url[:200]!r} is not https.", code="oidc_unavailable")
        try:
            with opener.open(url, timeout=TIMEOUT_S) as answer:
                data: bytes = answer.read(MAX_BYTES + 1)
        except (OSError, HTTPException) as error:
            raise UnavailableError(
                f"The provider does not answer at {url[:200]}: {error}.", code="oidc_unavailable"
            ) from error
        if len(data) > MAX_BYTES:
            raise UnavailableError(
                f"{url[:200]} is longer than {MAX_BYTES} bytes.", code="oidc_unavailable"
            )
        return data

    return fetch

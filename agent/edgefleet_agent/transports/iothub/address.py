"""Where a hub is, as `[transport] url` says it: straight, or by the Device Provisioning Service."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import urlsplit

from edgefleet_shared.errors import InvalidInputError

GLOBAL_DPS = "global.azure-devices-provisioning.net"
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_SCOPE = re.compile(r"[A-Za-z0-9]{1,64}")


class Address(NamedTuple):
    """A host, and the ID scope if it is the provisioning service's; '' = the hub's own."""

    host: str
    scope: str = ""


def parse(url: str) -> Address:
    """Return what an address means.

    Args:
        url: `iothub://HOST`, `dps://ID_SCOPE` or `dps://HOST/ID_SCOPE`.

    Raises:
        InvalidInputError: It is neither.
    """
    scheme, _, rest = url.partition("://")
    first, _, second = rest.rstrip("/").partition("/")
    if scheme == "iothub" and not second and _HOST.fullmatch(first):
        return Address(first)
    if scheme == "dps":
        host, scope = (first, second) if second else (GLOBAL_DPS, first)
        if _HOST.fullmatch(host) and _SCOPE.fullmatch(scope):
            return Address(host, scope)
    raise InvalidInputError(
        f"{url!r} is no address of an Azure IoT Hub.",
        code="configuration",
        hint="Use iothub://HOST, dps://ID_SCOPE or dps://HOST/ID_SCOPE; ports are fixed.",
    )


class Proxy(NamedTuple):
    """A proxy as the SDK is told of it; `kind` is HTTP, SOCKS4 or SOCKS5."""

    kind: str
    host: str
    port: int
    user: str | None
    password: str | None


def parse_proxy(url: str) -> Proxy | None:
    """Return a proxy; None for ''.

    Raises:
        InvalidInputError: It is none.
    """
    if not url:
        return None
    parts = urlsplit(url)
    kind, usual = {
        "http": ("HTTP", 8080), "socks4": ("SOCKS4", 1080), "socks5": ("SOCKS5", 1080),
    }.get(parts.scheme, ("", 0))  # fmt: skip
    try:
        port = parts.port or usual
    except ValueError:
        kind = ""
    if not kind or not parts.hostname:
        raise InvalidInputError(
            "iothub.proxy is no address of a proxy.",  # not repeated: it may hold a password
            code="configuration",
            hint="Use http://HOST:PORT or socks5://[USER:PASSWORD@]HOST:PORT.",
        )
    return Proxy(kind, parts.hostname, port, parts.username, parts.password)

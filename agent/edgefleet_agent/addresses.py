"""What a loopback address is: for the configuration, and for the gateway, which reads none."""

from __future__ import annotations

import ipaddress

from edgefleet_shared.errors import InvalidInputError


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT`.

    Raises:
        InvalidInputError: Malformed, or not a loopback address: the endpoint has no passwords.
    """
    host, _, port = text.rpartition(":")
    host = host.strip("[]")
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
        number = int(port)
    except ValueError:
        loopback, number = False, -1
    if not loopback or not 0 <= number < 65536:
        raise InvalidInputError(
            f"{text!r} is no loopback address.",
            code="configuration",
            hint="Give inference.tcp as 127.0.0.1:PORT, or '' for none.",
        )
    return host, number

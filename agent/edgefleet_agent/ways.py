"""By which transport the fleet manager is reached, and where."""

from __future__ import annotations

from typing import NamedTuple

from edgefleet_agent.config import Config
from edgefleet_agent.identity import TransportInfo
from edgefleet_shared.errors import InvalidInputError

SCHEMES = {"mqtt": "mqtt", "mqtts": "mqtt", "iothub": "iothub", "dps": "iothub"}
"""The scheme of an address to the kind of transport."""
EDGE = "iothub://iotedge"
"""The IoT Edge runtime tells its modules where to connect."""


class Way(NamedTuple):
    """A transport and its address.

    `mendable`: the other side knows the device by the fleet's certificate, so that where it is not
    taken a renewed one may help.
    """

    kind: str
    url: str
    mendable: bool = True


def way_of(config: Config, enrolled: TransportInfo) -> Way:
    """Return the way that is configured, or else the one that enrolment told.

    An address counts for the kind that it is of: one for each kind may be there, in the
    configuration and from enrolment, and `transport.kind` alone moves the device.

    Raises:
        InvalidInputError: Nothing says where (code `configuration`).
    """
    url = config.transport.url
    if url and not _kind_of(url):
        raise InvalidInputError(
            f"{url!r} is no address of a transport.",
            code="configuration",
            hint="Use mqtts://HOST:8883, mqtt://HOST:1883, iothub://HOST or dps://ID_SCOPE.",
        )
    edge = config.iothub.auth == "edge"
    kind = config.transport.kind or ("iothub" if edge else _kind_of(url) or enrolled.kind)
    for found in (EDGE if edge else "", url, enrolled.url):
        if _kind_of(found) == kind:
            return Way(kind, found, _mendable(config, kind))
    if kind not in SCHEMES.values():
        raise InvalidInputError(
            f"This agent knows no transport {kind!r}, as which it was enrolled.",
            code="configuration",
            hint="Install a newer agent, or set transport.kind and transport.url.",
        )
    raise InvalidInputError(
        f"Nothing says where the {kind} transport is to connect.",
        code="configuration",
        hint="Set transport.url, for example mqtts://HOST:8883, iothub://HOST or dps://ID_SCOPE.",
    )


def _kind_of(url: str) -> str:
    return SCHEMES.get(url.partition("://")[0], "")


def _mendable(config: Config, kind: str) -> bool:
    options = config.iothub
    return kind == "mqtt" or (options.auth == "x509" and not options.certificate_file)

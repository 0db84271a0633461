"""The options that say by which way new devices connect: MQTT, or an Azure IoT hub."""

from __future__ import annotations

from typing import Annotated

import typer

from edgefleet_provisioning.commands import completion
from edgefleet_provisioning.commands.session import Session
from edgefleet_provisioning.errors import NotFoundError
from edgefleet_shared.errors import InvalidInputError

MQTT = "mqtt"
ByHub = Annotated[
    bool | None,
    typer.Option(
        "--iothub/--mqtt",
        help="Connect through Azure IoT Hub, or through MQTT; by default as cloud.toml says.",
        show_default=False,
    ),
]
HubName = Annotated[
    str,
    typer.Option(
        "--hub",
        help="Which of several hubs, by its name in cloud.toml.",
        autocompletion=completion.hubs,
    ),
]
NEXT = (
    "It connects through Azure IoT Hub: install edgefleet-agent[iothub] there, and let the hub know"
    " the device CA, once: edgefleet iothub ca upload RESOURCE"
)


def choose(session: Session, by_hub: bool | None, hub: str) -> dict[str, str]:
    """Return what a ticket's request says of the way; empty: the fleet manager decides.

    Raises:
        InvalidInputError: No hub is meant, or it is not clear which (`unknown_way`, `usage`).
    """
    if by_hub is False:
        if hub:
            raise InvalidInputError("--hub and --mqtt exclude each other.", code="usage")
        return {"way": MQTT}
    if hub:
        return {"way": hub}
    return {"way": _only_hub(session)} if by_hub else {}


def _only_hub(session: Session) -> str:
    try:
        found = session.api.items("/v1/iothubs")
    except NotFoundError:
        found = []  # a fleet manager from before hubs
    chosen = [one for one in found if one.get("default")] or found
    if len(chosen) == 1:
        return str(chosen[0]["name"])
    names = ", ".join(str(one["name"]) for one in found)
    raise InvalidInputError(
        f"Which hub? There are {names}." if names else "The fleet manager knows no IoT hub.",
        code="unknown_way",
        hint="Give --hub NAME." if names else "Write [[iothub]] into cloud.toml; docs/iothub.md.",
    )

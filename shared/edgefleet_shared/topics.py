"""The only file that can spell an MQTT topic. Grammar: `f1/{device}/{dn|up}/...`; f1 = protocol 1.

| topic | QoS | retained | payload |
|---|---|---|---|
| f1/{device}/dn/desired      | 1 | yes | `messages.Desired` |
| f1/{device}/dn/renew        | 1 | yes | `renewal.RenewAsk`; empty = nothing is asked |
| f1/{device}/up/get          | 1 | no  | `messages.Get` |
| f1/{device}/up/reported     | 1 | yes | DSSE envelope of `messages.Reported` |
| f1/{device}/up/ev/{stream}  | 1 | no  | DSSE envelope of `messages.Batch` |
| f1/{device}/up/presence     | 1 | yes | `messages.Presence`; also the will |
"""

from __future__ import annotations

from typing import NamedTuple

from edgefleet_shared.identifiers import NAME

ROOT = "f1"


class Topic(NamedTuple):
    """A parsed topic: device id, direction (`dn` or `up`), kind, and the rest or ''."""

    device: str
    direction: str
    kind: str
    rest: str


def desired(device: str) -> str:
    """Downwards: what the device should run."""
    return f"{ROOT}/{device}/dn/desired"


def renew(device: str) -> str:
    """Downwards: the device is asked to renew its key."""
    return f"{ROOT}/{device}/dn/renew"


def down(device: str) -> str:
    """Downwards filter that a device subscribes to."""
    return f"{ROOT}/{device}/dn/#"


def get(device: str) -> str:
    """Upwards: the device asks for its desired document."""
    return f"{ROOT}/{device}/up/get"


def reported(device: str) -> str:
    """Upwards: what the device runs."""
    return f"{ROOT}/{device}/up/reported"


def stream(device: str, name: str) -> str:
    """Upwards: a batch of one of the outbox's streams."""
    return f"{ROOT}/{device}/up/ev/{name}"


def presence(device: str) -> str:
    """Upwards: online or not; also the topic of the will."""
    return f"{ROOT}/{device}/up/presence"


def retained(device: str) -> tuple[str, ...]:
    """Every topic of a device on which a broker keeps the newest message."""
    return desired(device), renew(device), reported(device), presence(device)


def all_up() -> str:
    """Filter that the fleet manager subscribes to."""
    return f"{ROOT}/+/up/#"


def acl_patterns() -> tuple[tuple[str, str], ...]:
    """Return (access, pattern) pairs for a broker; `%u` stands for the authenticated identity."""
    return (("write", f"{ROOT}/%u/up/#"), ("read", f"{ROOT}/%u/dn/#"))


def parse(topic: str) -> Topic | None:
    """Return the parts of one of our topics, or None for anything else."""
    parts = topic.split("/", 4)
    if len(parts) < 4 or parts[0] != ROOT or parts[2] not in {"dn", "up"}:
        return None
    if not NAME.fullmatch(parts[1]):
        return None
    return Topic(parts[1], parts[2], parts[3], parts[4] if len(parts) == 5 else "")

"""What `edgefleet init` writes: every file of a fleet folder, decided before one is written."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from edgefleet_provisioning import certificates, keys, repository
from edgefleet_provisioning.durable import PRIVATE, Content
from edgefleet_provisioning.keys import NamedKey
from edgefleet_provisioning.settings import check_server
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.identifiers import check_name
from edgefleet_shared.package import publisher_role
from edgefleet_shared.times import format_time

MAX_KEYS = 16
ONLINE_ROLES = ("snapshot", "timestamp", "director", "audit", "device-ca")


class FleetPlan(NamedTuple):
    """The choices of `edgefleet init`; `passphrase` None leaves the offline keys unencrypted."""

    fleet: str
    families: Sequence[str]
    root_keys: int
    root_threshold: int
    targets_keys: int
    targets_threshold: int
    server: str
    listen: str
    passphrase: bytes | None
    key_per_family: bool = False


def check(plan: FleetPlan) -> None:
    """Check the choices.

    Raises:
        InvalidInputError: A name, a number of keys or an address that cannot be.
    """
    check_name(plan.fleet, "fleet")
    for family in plan.families:
        check_name(family, "model family")
    if len(set(plan.families)) != len(plan.families):
        raise InvalidInputError("A family is given twice.", code="family_exists")
    for role, count, threshold in (
        ("root", plan.root_keys, plan.root_threshold),
        ("targets", plan.targets_keys, plan.targets_threshold),
    ):
        if not 1 <= threshold <= count <= MAX_KEYS:
            raise InvalidInputError(
                f"{threshold} of {count} {role} keys cannot be.",
                code="threshold",
                hint=f"Keep 1 <= --{role}-threshold <= --{role}-keys <= {MAX_KEYS}.",
            )
    host, colon, port = plan.listen.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise InvalidInputError(
            f"{plan.listen!r} is not an address to listen on.",
            code="invalid_address",
            hint="Give HOST:PORT, for example 127.0.0.1:8080.",
        )
    if plan.server:
        check_server(plan.server)


def files(plan: FleetPlan, now: datetime) -> dict[str, Content]:
    """Return every file of a new fleet, path to content; makes fresh keys.

    Raises:
        InvalidInputError: As `check`.
    """
    check(plan)
    root = _generate("root", plan.root_keys)
    targets = _generate("targets", plan.targets_keys)
    publishers = _publishers(plan)
    online = {role: keys.generate(role, role) for role in ONLINE_ROLES}
    metadata = repository.initial(
        repository.RepositoryKeys(
            [key.signer for key in root],
            plan.root_threshold,
            [key.signer for key in targets],
            plan.targets_threshold,
            {family: key.signer for family, key in publishers.items() if family},
            online["snapshot"].signer,
            online["timestamp"].signer,
            online["director"].signer.public_key,
            online["audit"].signer.public_key,
        ),
        now,
    )
    token = secrets.token_urlsafe(32)
    found = {"fleet.json": Content(_fleet_json(plan, now))}
    for key in dict.fromkeys([*root, *targets, *publishers.values()]):
        pem = keys.encode_private(key.signer, plan.passphrase)
        found[f"offline/keys/{key.name}.pem"] = Content(pem, PRIVATE)
        found[f"offline/keys/{key.name}.pub.json"] = Content(
            keys.encode_public(key.signer.public_key, key.role)
        )
    found["offline/metadata/1.root.json"] = Content(metadata["1.root.json"])
    found["offline/client.toml"] = Content(_client_toml(plan.server, token), PRIVATE)
    for role, key in online.items():
        pem = keys.encode_private(key.signer, None)
        found[f"online/keys/{role}.pem"] = Content(pem, PRIVATE)
    certificate = certificates.device_ca(plan.fleet, online["device-ca"].signer, now)
    found["online/keys/device-ca.crt"] = Content(certificate)
    for name, data in metadata.items():
        found[f"online/metadata/{name}"] = Content(data)
    found["online/admin.token"] = Content(f"{token}\n".encode(), PRIVATE)
    found["online/cloud.toml"] = Content(_cloud_toml(plan))
    return found


def _publishers(plan: FleetPlan) -> dict[str, NamedKey]:
    """Return each family's publisher key; under '' the one that is shared, also by later ones."""
    if plan.key_per_family:
        return {
            family: keys.generate(f"publisher-{family}-1", publisher_role(family))
            for family in plan.families
        }
    shared = keys.generate("publisher-1", "publisher")
    return dict.fromkeys(["", *plan.families], shared)


def _generate(role: str, count: int) -> list[NamedKey]:
    return [keys.generate(f"{role}-{number + 1}", role) for number in range(count)]


def _fleet_json(plan: FleetPlan, now: datetime) -> bytes:
    document = {
        "v": 1,
        "fleet": plan.fleet,
        "created": format_time(now),
        "root_threshold": plan.root_threshold,
        "targets_threshold": plan.targets_threshold,
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def _client_toml(server: str, token: str) -> bytes:
    return f"server = {json.dumps(server)}\ntoken = {json.dumps(token)}\n".encode()


def _cloud_toml(plan: FleetPlan) -> bytes:
    return f"""# Configuration of `edgefleet-cloud serve`; paths start at the folder of this file.
fleet = {json.dumps(plan.fleet)}
listen = {json.dumps(plan.listen)}
public_url = {json.dumps(plan.server)}
data_dir = "data"
keys_dir = "keys"
metadata_dir = "metadata"
admin_token_file = "admin.token"

[broker]
url = ""  # '' starts an embedded one: mosquitto if it is on PATH, else amqtt
""".encode()

"""`edgefleet iothub dps-group`: enrolment groups of a Device Provisioning Service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgefleet_provisioning.azure_iot import device_ca, enrolment_groups
from edgefleet_provisioning.azure_iot.enrolment_groups import Allocation, Plan, Reprovision
from edgefleet_provisioning.commands import completion
from edgefleet_provisioning.commands.device import check_output
from edgefleet_provisioning.commands.session import FleetOption, JsonOption
from edgefleet_provisioning.durable import PRIVATE, write_file
from edgefleet_provisioning.fleet_folder import FleetFolder, read
from edgefleet_provisioning.output import Output
from edgefleet_provisioning.settings import find_folder, need_folder
from edgefleet_shared.errors import InvalidInputError

app = typer.Typer(
    help="Enrolment groups of a Device Provisioning Service (DPS).", no_args_is_help=True
)

ConnectionFile = Annotated[
    Path | None,
    typer.Option(
        "--connection-file",
        help="File holding a service connection string of the DPS.",
        envvar="EDGEFLEET_DPS_CONNECTION_FILE",
        show_default=False,
    ),
]
DpsHost = Annotated[
    str,
    typer.Option(
        "--dps",
        help="The DPS by its host name, with a token of Entra ID (`az login`) instead.",
        envvar="EDGEFLEET_DPS_HOST",
    ),
]
TlsCa = Annotated[
    Path | None,
    typer.Option("--tls-ca", help="PEM file of the CA behind its certificate.", show_default=False),
]
GroupId = Annotated[
    str,
    typer.Argument(
        metavar="GROUP", help="The enrolment group.", autocompletion=completion.dps_groups
    ),
]
NewGroupId = Annotated[str, typer.Argument(metavar="GROUP", help="The new enrolment group.")]
Hubs = Annotated[
    list[str] | None,
    typer.Option("--hub", help="Host name of a linked hub; repeat it.", show_default=False),
]
AllocationOption = Annotated[
    Allocation | None,
    typer.Option("--allocation", help="How one of the hubs is chosen.", show_default=False),
]
ReprovisionOption = Annotated[
    Reprovision | None,
    typer.Option(
        "--reprovision", help="What becomes of a twin when its device moves.", show_default=False
    ),
]
Keys = Annotated[
    Path | None,
    typer.Option("--keys", help="Folder with device-ca.crt.", show_default=False),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be sent; change nothing.")]
CaNames = Annotated[
    list[str] | None,
    typer.Option(
        "--ca-name",
        help="Name, in the DPS, of a verified CA to take instead of sending it; up to two.",
        show_default=False,
    ),
]


@app.command("create")
def create(
    group: NewGroupId,
    connection_file: ConnectionFile = None,
    dps: DpsHost = "",
    symmetric: Annotated[
        bool, typer.Option("--symmetric", help="By a symmetric key, not by certificates.")
    ] = False,
    ca_name: CaNames = None,
    hub: Hubs = None,
    allocation: AllocationOption = "hashed",
    reprovision: ReprovisionOption = "migrate",
    edge: Annotated[bool, typer.Option("--edge", help="Its devices are IoT Edge devices.")] = False,
    keys: Keys = None,
    tls_ca: TlsCa = None,
    dry_run: DryRun = False,
    fleet: FleetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let the fleet's devices register at the DPS: by the device CA, or by a symmetric key."""
    output = Output(as_json=as_json)
    folder = need_folder(fleet) if not (symmetric or ca_name or keys) else find_folder(fleet)
    plan = Plan(
        [] if symmetric or ca_name else _authorities(keys_folder(folder, keys)),
        _ca_names(ca_name, symmetric=symmetric), symmetric, hub or [], allocation, edge, True,
        reprovision, folder.file.fleet if folder else "",
    )  # fmt: skip
    body = enrolment_groups.document(group, plan)
    if dry_run:
        output.result({"dry_run": True, "body": body}, f"{group} would be made:\n{_told(body)}")
        return
    with enrolment_groups.connect(connection_file, dps, tls_ca) as groups:
        made = _public(groups.create(body))
    after = f"\nNext, for each device: edgefleet iothub dps-group key {group} DEVICE -o FILE"
    told = f"{group} is made; its devices may register.\n{_told(made)}"
    output.result(made, told + (after if symmetric else ""))


@app.command("update")
def update(
    group: GroupId,
    connection_file: ConnectionFile = None,
    dps: DpsHost = "",
    ca: Annotated[
        bool, typer.Option("--ca", help="Send the device CA as it is now: after a rotation.")
    ] = False,
    ca_name: CaNames = None,
    hub: Hubs = None,
    allocation: AllocationOption = None,
    reprovision: ReprovisionOption = None,
    enable: Annotated[
        bool | None,
        typer.Option("--enable/--disable", help="Whether devices may register."),
    ] = None,
    keys: Keys = None,
    tls_ca: TlsCa = None,
    dry_run: DryRun = False,
    fleet: FleetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change what is named of a group, and leave the rest as it is."""
    output = Output(as_json=as_json)
    folder = keys_folder(find_folder(fleet), keys) if ca else None
    plan = Plan(
        _authorities(folder) if folder else [], _ca_names(ca_name, symmetric=ca), False, hub,
        allocation, None, enable, reprovision,
    )  # fmt: skip
    with enrolment_groups.connect(connection_file, dps, tls_ca) as groups:
        found = groups.get(group)
        kind = (found.get("attestation") or {}).get("type")
        if (ca or ca_name) and kind != "x509":
            raise InvalidInputError(
                f"The devices of {group} show keys, not certificates.",
                code="usage",
                hint="Delete the group and make another.",
            )
        if kind == "symmetricKey":  # what is read of it is without the keys, and would clear them
            found["attestation"] = {"type": kind, "symmetricKey": groups.keys(group)}
        body = enrolment_groups.document(group, plan, found)
        if dry_run:
            shown = _public(body)
            output.result({"dry_run": True, "body": shown}, f"{group} would be:\n{_told(shown)}")
            return
        made = _public(groups.update(body, str(found.get("etag", ""))))
    output.result(made, f"{group} is changed.\n{_told(made)}")


@app.command("show")
def show(
    group: GroupId,
    connection_file: ConnectionFile = None,
    dps: DpsHost = "",
    tls_ca: TlsCa = None,
    as_json: JsonOption = False,
) -> None:
    """Show a group; never its keys."""
    with enrolment_groups.connect(connection_file, dps, tls_ca) as groups:
        found = _public(groups.get(group))
    Output(as_json=as_json).result(found, f"{group}\n{_told(found)}")


@app.command("list")
def list_(
    connection_file: ConnectionFile = None,
    dps: DpsHost = "",
    tls_ca: TlsCa = None,
    as_json: JsonOption = False,
) -> None:
    """List the groups of the DPS."""
    with enrolment_groups.connect(connection_file, dps, tls_ca) as groups:
        found = [_public(one) for one in groups.all()]
    rows = [
        (
            one.get("enrollmentGroupId"), (one.get("attestation") or {}).get("type"),
            one.get("provisioningStatus"), one.get("allocationPolicy"),
            " ".join(one.get("iotHubs") or []),
        )
        for one in found
    ]  # fmt: skip
    columns = ("group", "by", "status", "allocation", "hubs")
    Output(as_json=as_json).table(found, columns, rows)


@app.command("delete")
def delete(
    group: GroupId,
    connection_file: ConnectionFile = None,
    dps: DpsHost = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    tls_ca: TlsCa = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a group: no new device registers by it; those that did stay in their hubs."""
    output = Output(as_json=as_json)
    if output.interactive and not yes:
        typer.confirm(f"Delete the enrolment group {group}?", abort=True)
    with enrolment_groups.connect(connection_file, dps, tls_ca) as groups:
        groups.delete(group)
    output.result({"group": group, "deleted": True}, f"{group} is deleted.")


@app.command("key")
def key(
    group: GroupId,
    device: Annotated[str, typer.Argument(metavar="DEVICE", help="The device's id.")],
    out: Annotated[
        Path, typer.Option("--output", "-o", help="Write the device's key here (0600).")
    ],
    group_key_file: Annotated[
        Path | None,
        typer.Option(
            "--group-key-file", help="File with the group's key; DPS is not asked then.",
            show_default=False,
        ),
    ] = None,
    connection_file: ConnectionFile = None,
    dps: DpsHost = "",
    tls_ca: TlsCa = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Derive a device's key from its group's, which goes nowhere."""
    check_output(out)
    if group_key_file:
        missing = f"There is no file {group_key_file} with a group's key."
        group_key = read(group_key_file, "group's key", missing, "").decode("utf-8", "replace")
    else:
        with enrolment_groups.connect(connection_file, dps, tls_ca) as groups:
            group_key = groups.keys(group)["primaryKey"]
    derived = enrolment_groups.derive(group_key.strip(), device)
    write_file(out, f"{derived}\n".encode(), PRIVATE)
    Output(as_json=as_json).result(
        {"group": group, "device": device, "file": str(out.resolve())},
        f'The key of {device} is in {out}. On the device: [iothub] auth = "sas" and '
        f'key_file = "{out.name}" in agent.toml.',
    )


def keys_folder(folder: FleetFolder | None, keys: Path | None) -> Path:
    """Return where the device CA lies: what was given, or the fleet folder's online side.

    Raises:
        InvalidInputError: Neither is known.
    """
    if keys is not None:
        return keys
    if folder is None:
        folder = need_folder(None)
    return folder.path / "online" / "keys"


def _authorities(keys: Path) -> list[str]:
    return [one.pem for one in device_ca.load(keys)][:2]


def _ca_names(names: list[str] | None, *, symmetric: bool) -> list[str]:
    if names and (symmetric or len(names) > 2):
        raise InvalidInputError(
            "--ca-name names one or two CAs, and nothing else proves a device then.", code="usage"
        )
    return names or []


def _public(found: dict[str, Any]) -> dict[str, Any]:
    """Return a group without its symmetric keys: they belong on no screen and in no log."""
    attestation = dict(found.get("attestation") or {})
    attestation.pop("symmetricKey", None)
    return {**found, "attestation": attestation}


def _told(found: dict[str, Any]) -> str:
    attestation = found.get("attestation") or {}
    by = {"x509": "certificates of the device CA", "symmetricKey": "keys derived from the group's"}
    policy = found.get("reprovisionPolicy") or {}
    again = next(
        (name for name, value in enrolment_groups.REPROVISION.items() if value == policy), "-"
    )
    lines = (
        ("proof", by.get(str(attestation.get("type")), str(attestation.get("type")))),
        ("status", found.get("provisioningStatus", "-")),
        ("hubs", " ".join(found.get("iotHubs") or []) or "all that are linked"),
        ("allocation", found.get("allocationPolicy", "-")),
        ("moved devices", again),
        ("IoT Edge", "yes" if (found.get("capabilities") or {}).get("iotEdge") else "no"),
    )
    return "\n".join(f"  {name:<14} {value}" for name, value in lines)

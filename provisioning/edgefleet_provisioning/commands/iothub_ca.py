"""`edgefleet iothub ca`: the fleet's device CA in an IoT hub or a DPS, with proof of possession."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from edgefleet_provisioning.azure_iot import device_ca
from edgefleet_provisioning.azure_iot.certificates import (
    RESOURCE_MANAGER,
    Certificate,
    Certificates,
    Resource,
    az_commands,
)
from edgefleet_provisioning.azure_iot.client import AzureClient
from edgefleet_provisioning.azure_iot.credentials import RESOURCE_MANAGER_SCOPE, Entra
from edgefleet_provisioning.azure_iot.device_ca import Authority
from edgefleet_provisioning.commands.device import check_output
from edgefleet_provisioning.commands.iothub_dps import Keys, TlsCa, keys_folder
from edgefleet_provisioning.commands.session import FleetOption, JsonOption
from edgefleet_provisioning.durable import write_file
from edgefleet_provisioning.output import Output
from edgefleet_provisioning.settings import find_folder
from edgefleet_shared.errors import InvalidInputError

app = typer.Typer(
    help="The fleet's device CA in an IoT hub or a DPS: it vouches for every device.",
    no_args_is_help=True,
)

ResourceId = Annotated[
    str,
    typer.Argument(
        metavar="RESOURCE", help="Resource id of the hub or DPS (`az iot hub show --query id`)."
    ),
]
Out = Annotated[Path, typer.Option("--output", "-o", help="The file to write.")]
WhichCa = Annotated[
    str, typer.Option("--ca", help="Which CA, by its name in Azure; by default the newest.")
]
Manager = Annotated[
    str,
    typer.Option(
        "--resource-manager", help="Of another cloud of Azure's.", envvar="EDGEFLEET_AZURE_MANAGER"
    ),
]


@app.command("upload")
def upload(
    resource: ResourceId,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show what is missing, and the `az` commands for it."),
    ] = False,
    keys: Keys = None,
    manager: Manager = RESOURCE_MANAGER,
    tls_ca: TlsCa = None,
    fleet: FleetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Upload what Azure lacks of the device CA, and prove that we hold its key."""
    output, where = Output(as_json=as_json), Resource.parse(resource)
    folder = keys_folder(find_folder(fleet), keys)
    authorities = device_ca.load(folder)
    if dry_run:
        _print_commands(output, where, authorities, folder)
        return
    done: list[dict[str, Any]] = []
    with _client(manager, where, tls_ca) as client:
        certificates = Certificates(client, where)
        there = {one.thumbprint: one for one in certificates.all()}
        for authority in authorities:
            found = there.get(authority.thumbprint)
            action = _bring(output, certificates, authority, found)
            name = found.name if found else authority.name
            done.append({"name": name, "thumbprint": authority.thumbprint, "done": action})
    told = "\n".join(f"{one['name']}: {one['done']}" for one in done)
    output.result({"resource": where.id, "certificates": done}, told)


@app.command("list")
def list_(
    resource: ResourceId,
    keys: Keys = None,
    manager: Manager = RESOURCE_MANAGER,
    tls_ca: TlsCa = None,
    fleet: FleetOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the CA certificates there, and say which are the fleet's."""
    where = Resource.parse(resource)
    ours = {one.thumbprint for one in device_ca.load(keys_folder(find_folder(fleet), keys))}
    with _client(manager, where, tls_ca) as client:
        found = Certificates(client, where).all()
    document = [{**one._asdict(), "ours": one.thumbprint in ours} for one in found]
    rows = [
        (one["name"], one["verified"], one["ours"], one["subject"], one["expiry"])
        for one in document
    ]
    columns = ("name", "verified", "the fleet's", "subject", "until")
    Output(as_json=as_json).table(document, columns, rows)


@app.command("remove")
def remove(
    resource: ResourceId,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The certificate.")],
    keys: Keys = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also one that devices still show.")
    ] = False,
    manager: Manager = RESOURCE_MANAGER,
    tls_ca: TlsCa = None,
    fleet: FleetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove a CA that the fleet has left behind; one that it trusts stays, unless forced."""
    where = Resource.parse(resource)
    with _client(manager, where, tls_ca) as client:
        certificates = Certificates(client, where)
        one = _named(certificates.all(), name)
        if not force:
            ours = device_ca.load(keys_folder(find_folder(fleet), keys))
            _check_left_behind(one, ours)
        certificates.delete(one)
    Output(as_json=as_json).result({"name": name, "removed": True}, f"{name} is removed.")


@app.command("pem")
def pem(
    out: Out,
    ca: WhichCa = "",
    keys: Keys = None,
    fleet: FleetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the device CA's certificate into a file of its own, for `az` or the portal."""
    check_output(out)
    chosen = _chosen(device_ca.load(keys_folder(find_folder(fleet), keys)), ca)
    write_file(out, chosen.pem.encode())
    document = {"ca": chosen.name, "thumbprint": chosen.thumbprint, "file": str(out.resolve())}
    Output(as_json=as_json).result(document, f"The certificate of {chosen.name} is in {out}.")


@app.command("prove")
def prove(
    code: Annotated[str, typer.Argument(metavar="CODE", help="Azure's verification code.")],
    out: Out,
    ca: WhichCa = "",
    keys: Keys = None,
    fleet: FleetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Sign a verification code with the device CA's key, for a proof by `az` or in the portal."""
    check_output(out)
    chosen = _chosen(device_ca.load(keys_folder(find_folder(fleet), keys)), ca)
    write_file(out, device_ca.prove(chosen, code, datetime.now(UTC)).encode())
    Output(as_json=as_json).result(
        {"ca": chosen.name, "file": str(out.resolve())},
        f"{out} proves for an hour that we hold the key of {chosen.name}.",
    )


def _chosen(authorities: list[Authority], ca: str) -> Authority:
    for one in authorities:
        if ca in {"", one.name, one.thumbprint}:
            return one
    names = ", ".join(one.name for one in authorities)
    raise InvalidInputError(
        f"The fleet trusts no CA {ca[:80]!r}.", code="device_ca", hint=f"It trusts {names}."
    )


def _bring(
    output: Output, certificates: Certificates, authority: Authority, found: Certificate | None
) -> str:
    """Upload and verify one CA as far as it is not; return what was done."""
    if found and found.verified:
        return "was there and verified"
    if not found:
        output.note(f"Uploading {authority.name} ...")
        found = certificates.put(authority.name, authority.pem)
    output.note(f"Proving that we hold the key of {found.name} ...")
    code, etag = certificates.code(found)
    proof = device_ca.prove(authority, code, datetime.now(UTC))
    certificates.verify(found.name, etag, proof)
    return "uploaded and verified" if found.name == authority.name else "verified"


def _print_commands(
    output: Output, where: Resource, authorities: list[Authority], folder: Path
) -> None:
    lines: list[str] = []
    for authority in authorities:
        file = f"{authority.name}.pem"
        lines.append(f"edgefleet iothub ca pem --keys {folder} --ca {authority.name} -o {file}")
        lines += az_commands(where, authority.name, file)
    document = {
        "dry_run": True,
        "resource": where.id,
        "certificates": [
            {"name": one.name, "thumbprint": one.thumbprint, "key": one.key is not None}
            for one in authorities
        ],
        "az": lines,
    }
    output.result(document, "\n".join(lines))


def _named(found: list[Certificate], name: str) -> Certificate:
    for one in found:
        if one.name == name:
            return one
    raise InvalidInputError(
        f"There is no certificate {name[:80]!r}.",
        code="not_found",
        hint=f"There are: {', '.join(one.name for one in found) or 'none'}.",
    )


def _check_left_behind(one: Certificate, ours: list[Authority]) -> None:
    if one.thumbprint in {authority.thumbprint for authority in ours}:
        raise InvalidInputError(
            f"{one.name} is a CA that the fleet trusts: its devices would be let in no more.",
            code="ca_in_use",
            hint="Rotate the device CA first, or give --force.",
        )


def _client(manager: str, where: Resource, tls_ca: Path | None) -> AzureClient:
    return AzureClient(manager, where.api_version, Entra(RESOURCE_MANAGER_SCOPE), tls_ca)

"""`edgefleet init`: the keys and the first trust metadata of a fleet."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from edgefleet_provisioning import fleet_plan, passphrase
from edgefleet_provisioning.commands.session import JsonOption, PassphraseOption
from edgefleet_provisioning.durable import write_tree
from edgefleet_provisioning.output import Output
from edgefleet_shared.errors import InvalidInputError

DEFAULT_LISTEN = "127.0.0.1:8080"


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The new fleet folder.")],
    fleet: Annotated[str, typer.Option(help="The fleet's name.", show_default=False)],
    family: Annotated[
        list[str] | None,
        typer.Option(help="A model name that may be published; repeat it.", show_default=False),
    ] = None,
    root_keys: Annotated[int, typer.Option(help="Root keys to make.")] = 3,
    root_threshold: Annotated[int, typer.Option(help="Root keys that must sign.")] = 2,
    targets_keys: Annotated[int, typer.Option(help="Targets keys to make.")] = 3,
    targets_threshold: Annotated[int, typer.Option(help="Targets keys that must sign.")] = 2,
    key_per_family: Annotated[
        bool,
        typer.Option("--key-per-family", help="A publisher key for each model, not one for all."),
    ] = False,
    server: Annotated[
        str | None,
        typer.Option(help="URL at which devices and you reach it.", show_default=False),
    ] = None,
    listen: Annotated[str, typer.Option(help="Address it listens on.")] = DEFAULT_LISTEN,
    passphrase_file: PassphraseOption = None,
    insecure_no_passphrase: Annotated[
        bool,
        typer.Option("--insecure-no-passphrase", help="Leave the offline keys unencrypted."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a fleet: offline keys, online keys and the first trust metadata, in one folder."""
    plan = fleet_plan.FleetPlan(
        fleet, family or [], root_keys, root_threshold, targets_keys, targets_threshold,
        server or _address(listen), listen, None, key_per_family,
    )  # fmt: skip
    fleet_plan.check(plan)
    _check_new(folder)
    secret = passphrase.choose(passphrase_file, insecure=insecure_no_passphrase)
    plan = plan._replace(passphrase=secret)
    write_tree(folder, fleet_plan.files(plan, datetime.now(UTC)))
    document = {
        "folder": str(folder.resolve()),
        "fleet": fleet,
        "families": plan.families,
        "server": plan.server,
        "encrypted": secret is not None,
        "config": str(folder.resolve() / "online" / "cloud.toml"),
    }
    Output(as_json=as_json).result(
        document,
        f"Fleet {fleet} stands in {folder}.\n"
        f"  offline/  root, targets and publisher keys: keep them off the server and back them up\n"
        f"  online/   what the fleet manager needs, complete by itself\n"
        f"Next: edgefleet-cloud serve --config {folder / 'online' / 'cloud.toml'}\n"
        f"      edgefleet --help  (with EDGEFLEET_FLEET={folder})",
    )


def _address(listen: str) -> str:
    """Return the URL of an address; '' for port 0, which is known only once it serves."""
    return "" if listen.endswith(":0") else f"http://{listen}"


def _check_new(folder: Path) -> None:
    """Refuse an existing folder before anybody types a passphrase."""
    if folder.exists() or folder.is_symlink():
        raise InvalidInputError(
            f"{folder} exists already.",
            code="exists",
            hint="Choose another folder; nothing was changed.",
        )

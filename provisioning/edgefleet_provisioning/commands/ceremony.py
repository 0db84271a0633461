"""`edgefleet trust sign|publish|rotate-root`: the steps of a signing ceremony."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgefleet_provisioning import passphrase, signers
from edgefleet_provisioning.ceremony import MAX_BYTES, Ceremony
from edgefleet_provisioning.commands import completion, signing
from edgefleet_provisioning.commands.session import (
    FleetOption,
    JsonOption,
    PassphraseOption,
    Session,
    connected,
)
from edgefleet_provisioning.durable import write_file
from edgefleet_provisioning.fleet_folder import FleetFolder, read
from edgefleet_provisioning.key_changes import Changes
from edgefleet_provisioning.key_store import KeyStore
from edgefleet_provisioning.output import Output
from edgefleet_provisioning.seen import Seen
from edgefleet_provisioning.settings import need_folder
from edgefleet_shared.errors import InvalidInputError

CeremonyFile = Annotated[Path, typer.Argument(metavar="FILE", help="A ceremony file.")]
KeyNames = Annotated[
    list[str] | None,
    typer.Option(help="A key's name; repeat it.", autocompletion=completion.keys),
]


def sign(
    file: CeremonyFile,
    key: Annotated[
        list[str],
        typer.Option(
            help="Name of a key of the fleet folder, or its URI; repeat it.",
            autocompletion=completion.keys,
        ),
    ],
    fleet: FleetOption = None,
    passphrase_file: PassphraseOption = None,
    yes: signing.YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show what a ceremony file changes and sign it; needs no server."""
    voice, folder = Output(as_json=as_json), need_folder(fleet)
    store, keyring = KeyStore(folder), passphrase.Keyring(folder, passphrase_file)
    ceremony = _open(file, folder)
    Seen(folder.trust_cache).check(ceremony.present.versions())
    signing.show(voice, ceremony, store)
    for name in key:
        if ":" not in name:
            store.find(name)  # a name that is wrong is told before anybody says yes
    if not yes:
        typer.confirm("Do you sign this?", abort=True, err=True)
    for name in key:
        _sign_one(ceremony, name, store, keyring)
    write_file(file, ceremony.encode())
    signing.report(voice, ceremony, store, f"Signed by {', '.join(key)}.", file)


@connected
def publish(
    session: Session,
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="A ceremony file, or copies of one.")
    ],
) -> None:
    """Bring a ceremony to the fleet manager, once enough have signed; copies are put together."""
    folder = need_folder(session.fleet)
    ceremony, *others = (_open(file, folder) for file in files)
    for other in others:
        ceremony.merge(other)
    signing.publish(session, ceremony, folder, KeyStore(folder))


@connected
def rotate_root(
    session: Session,
    add: KeyNames = None,
    remove: KeyNames = None,
    root_threshold: Annotated[
        int | None, typer.Option(min=1, help="Root keys that must sign from then on.")
    ] = None,
    targets_threshold: Annotated[
        int | None, typer.Option(min=1, help="Targets keys that must sign from then on.")
    ] = None,
    prepare: signing.PrepareOption = None,
    passphrase_file: PassphraseOption = None,
    yes: signing.YesOption = False,
) -> None:
    """Sign the next root: other keys, other thresholds, or only a new life."""
    desk = signing.open_desk(session)
    changes = desk.changes()
    changes.renew("root")
    for name in add or []:
        stored = desk.store.find(name)
        changes.add(_root_role(stored.role, name), stored.key)
    for name in remove or []:
        stored = desk.store.find(name)
        changes.remove(_root_role(stored.role, name), stored.keyid)
    _thresholds(changes, root=root_threshold, targets=targets_threshold)
    version = desk.present.root.signed.version + 1
    told = [f"adds {n}" for n in add or []] + [f"removes {n}" for n in remove or []]
    title = f"Root {version}" + (f" {', '.join(told)}" if told else " of the same keys")
    keyring = passphrase.Keyring(desk.folder, passphrase_file)
    signing.settle(session, desk, changes, title, keyring, prepare=prepare, yes=yes)


def _thresholds(changes: Changes, **numbers: int | None) -> None:
    for role, number in numbers.items():
        if number is not None:
            changes.threshold(role, number)


def _root_role(role: str, name: str) -> str:
    if role not in {"root", "targets"}:
        raise InvalidInputError(
            f"{name} is a key for {role}, which the root does not name.",
            code="invalid_role",
            hint="`edgefleet keys rotate` and `edgefleet trust delegate` change those.",
        )
    return role


def _open(file: Path, folder: FleetFolder) -> Ceremony:
    data = read(file, "ceremony file", f"{file} is missing.", "--prepare FILE writes one.")
    if len(data) > MAX_BYTES:
        raise InvalidInputError(f"{file} is too long for a ceremony file.", code="malformed")
    return Ceremony.decode(data, folder.file.fleet, folder.root())


def _sign_one(ceremony: Ceremony, name: str, store: KeyStore, keyring: passphrase.Keyring) -> None:
    """Sign every file that asks for this key.

    Raises:
        InvalidInputError: None does (code `wrong_key`).
    """
    if ":" in name:
        uri, public = signers.import_public(name, keyring.secret)
        signer = signers.open_uri(uri, public, keyring.secret)
    else:
        stored = store.find(name)
        signer, public = keyring.signer(stored), stored.key
    files = {need.file for need in ceremony.needs() if public.keyid in need.missing}
    if not files:
        raise InvalidInputError(
            f"Nothing here asks for a signature of {name}.",
            code="wrong_key",
            hint="It has signed already, or is not a key of these roles. Nothing was signed.",
        )
    for file in files:
        payload = ceremony.new[file].signed_bytes
        ceremony.attach(public.keyid, file, signers.sign_with(signer, payload, name))

"""What the commands that change trust share: the present state, the ceremony, the last step."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from edgefleet_provisioning import ceremony_text, signers
from edgefleet_provisioning.catalog import Catalog
from edgefleet_provisioning.ceremony import Ceremony
from edgefleet_provisioning.commands.session import Session
from edgefleet_provisioning.durable import write_file
from edgefleet_provisioning.fleet_folder import FleetFolder
from edgefleet_provisioning.key_changes import Changes
from edgefleet_provisioning.key_store import KeyStore
from edgefleet_provisioning.output import Output
from edgefleet_provisioning.passphrase import Keyring
from edgefleet_provisioning.present import Present
from edgefleet_provisioning.seen import Seen
from edgefleet_provisioning.settings import need_folder
from edgefleet_shared.errors import InvalidInputError

PrepareOption = Annotated[
    Path | None,
    typer.Option(
        "--prepare", metavar="FILE", help="Write a ceremony file instead of signing.",
        show_default=False,
    ),
]  # fmt: skip
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


class Desk(NamedTuple):
    """Where trust is changed: the fleet folder, its keys, and what stands now."""

    folder: FleetFolder
    store: KeyStore
    present: Present

    def changes(self) -> Changes:
        """Return an empty list of changes."""
        return Changes(self.present, datetime.now(UTC))


def open_desk(session: Session) -> Desk:
    """Return the desk of a command's fleet; what has expired there can be renewed.

    Raises:
        InvalidInputError: There is no fleet folder.
        TrustError: The server's catalog does not hold, or is older than what was seen.
    """
    folder = need_folder(session.fleet)
    catalog = Catalog(session.api, folder.root(), folder.trust_cache, even_expired=True)
    present = catalog.present()
    Seen(folder.trust_cache).check(present.versions())
    return Desk(folder, KeyStore(folder), present)


def settle(
    session: Session,
    desk: Desk,
    changes: Changes,
    title: str,
    keyring: Keyring,
    *,
    prepare: Path | None,
    yes: bool,
) -> None:
    """Sign the changes with the keys at hand and publish them; or only write a ceremony file.

    Raises:
        InvalidInputError: A role would have too few keys, or too few keys are at hand.
        RefusedError: The server does not take what was signed.
    """
    fleet, now = desk.folder.file.fleet, datetime.now(UTC)
    ceremony = Ceremony.begin(fleet, title, desk.present, changes.finish(), now)
    for role in changes.without_spare():
        session.output.note(f"Every key of {role} must sign from now on: lose one, and it ends.")
    if prepare:
        write_file(prepare, ceremony.encode())
        report(session.output, ceremony, desk.store, f"{prepare} holds: {title}.", prepare)
        return
    if session.output.interactive and not yes:
        show(session.output, ceremony, desk.store)
        typer.confirm("Sign and publish this?", abort=True)
    sign_at_hand(ceremony, desk.store, keyring)
    publish(session, ceremony, desk.folder, desk.store)


def sign_at_hand(ceremony: Ceremony, store: KeyStore, keyring: Keyring) -> None:
    """Sign with as many of the keys at hand as are needed, those first that count twice."""
    while due := ceremony.due():
        unmet = [need for need in ceremony.needs() if not need.met]
        keys = store.for_ids(set(due))
        if not keys:
            return
        best = max(keys, key=lambda key: sum(key.keyid in need.missing for need in unmet))
        signer = keyring.signer(best)
        for name in {need.file for need in unmet if best.keyid in need.missing}:
            payload = ceremony.new[name].signed_bytes
            ceremony.attach(best.keyid, name, signers.sign_with(signer, payload, best.name))


def publish(session: Session, ceremony: Ceremony, folder: FleetFolder, store: KeyStore) -> None:
    """Send what is signed by enough.

    Raises:
        InvalidInputError: It is not; says who is missing (code `threshold`).
        RefusedError: The server does not take it.
    """
    lacking = [need for need in ceremony.needs() if not need.met]
    if lacking:
        raise InvalidInputError(
            " ".join(f"{ceremony_text.missing(need, store.named)}." for need in lacking),
            code="threshold",
            hint="Nothing was published. --prepare FILE writes a ceremony file for the others.",
        )
    files = ceremony.files()
    encoded = {name: base64.b64encode(data).decode() for name, data in files.items()}
    session.api.post("/v1/trust/metadata", {"files": encoded})
    Seen(folder.trust_cache).remember(ceremony.versions())
    signed = {name for need in ceremony.needs() for name in map(store.named, need.signed)}
    session.output.result(
        {"title": ceremony.title, "files": sorted(files), "signed_by": sorted(signed)},
        f"{ceremony.title}: published {', '.join(files)}; signed by {', '.join(sorted(signed))}.",
    )


def show(output: Output, ceremony: Ceremony, store: KeyStore) -> None:
    """Say what would be signed, and who must."""
    output.note(f"Said to be for: {ceremony.title}")  # nobody signs that sentence
    for line in ceremony_text.describe(ceremony, store.named):
        output.note(line)


def report(output: Output, ceremony: Ceremony, store: KeyStore, text: str, path: Path) -> None:
    """Give the result of a step of a ceremony: digests, and who must still sign."""
    lacking = [need for need in ceremony.needs() if not need.met]
    document = {
        "file": str(path),
        "title": ceremony.title,
        "digests": {name: ceremony.digest(name) for name in ceremony.new},
        "complete": not lacking,
        "missing": [
            {
                "file": need.file,
                "by": need.by,
                "more": need.threshold - len(need.signed),
                "keys": sorted(map(store.named, need.missing)),
            }
            for need in lacking
        ],
    }
    lines = [f"  {ceremony_text.missing(need, store.named)}" for need in lacking]
    step = f"sign {path} --key NAME" if lacking else f"publish {path}"
    digests = [f"  {name}   {ceremony.digest(name)}" for name in ceremony.new]
    output.result(document, "\n".join([text, *digests, *lines, f"Next: edgefleet trust {step}"]))

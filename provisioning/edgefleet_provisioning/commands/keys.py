"""`edgefleet keys`: the keys of a fleet, where they lie, and what happens when one must go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from securesystemslib.signer import Key

from edgefleet_provisioning import key_backup, key_store, keys, passphrase, signers
from edgefleet_provisioning.api import Api
from edgefleet_provisioning.commands import completion, key_table, signing
from edgefleet_provisioning.commands.session import (
    FleetOption,
    JsonOption,
    PassphraseOption,
    ReasonOption,
    ServerOption,
    Session,
    TokenOption,
    connected,
)
from edgefleet_provisioning.fleet_folder import MAX_BYTES, read
from edgefleet_provisioning.key_store import ONLINE_ROLES, KeyStore, StoredKey
from edgefleet_provisioning.output import Output
from edgefleet_provisioning.settings import connection, need_folder
from edgefleet_shared import strict_json
from edgefleet_shared.errors import InvalidInputError

app = typer.Typer(help="Look after the fleet's signing keys.", no_args_is_help=True)
app.command("list")(key_table.list_)

KeyName = Annotated[
    str,
    typer.Argument(
        metavar="KEY",
        help="Name or key id; or a role of the server's: director, snapshot, ...",
        autocompletion=completion.keys,
    ),
]
To = Annotated[
    str | None,
    typer.Option(
        help="The key that takes its place; default: a new one.",
        show_default=False,
        autocompletion=completion.keys,
    ),
]
AlgorithmOption = Annotated[str, typer.Option(help=f"One of {', '.join(keys.ALGORITHMS)}.")]


@app.command("add")
def add(
    role: Annotated[
        str,
        typer.Argument(
            help="root, targets, publisher; the server's: snapshot, timestamp, director, audit.",
            autocompletion=completion.roles,
        ),
    ],
    family: Annotated[
        str | None, typer.Option(help="Of a publisher: the one model.", show_default=False)
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Default: role and number.", show_default=False)
    ] = None,
    algorithm: AlgorithmOption = keys.DEFAULT_ALGORITHM,
    uri: Annotated[
        str | None,
        typer.Option(help="Where the key is: hsm:2?label=ops, awskms:ID, ...", show_default=False),
    ] = None,
    public: Annotated[
        Path | None,
        typer.Option(help="A .pub.json: somebody else holds the key.", show_default=False),
    ] = None,
    fleet: FleetOption = None,
    server: ServerOption = None,
    token: TokenOption = None,
    passphrase_file: PassphraseOption = None,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Make a key, or take note of one that is elsewhere. It signs nothing until it is named."""
    voice = Output(as_json=as_json)
    if role in ONLINE_ROLES:
        if uri or public or name or family:
            raise InvalidInputError(
                f"The key for {role} is made on the server.",
                code="usage",
                hint="Give the role alone.",
            )
        with Api(connection(server, token, fleet), reason) as api:
            made = api.post("/v1/trust/keys", {"role": role})
        voice.result(
            made,
            f"{made['file']} lies on the server, unused.\n"
            f"Next: edgefleet keys rotate {role} --to {made['keyid'][:12]}",
        )
        return
    folder = need_folder(fleet)
    store = KeyStore(folder)
    full = key_store.check_role(role, family)
    chosen = name or store.next_name(full)
    if uri and public:
        raise InvalidInputError("--uri and --public exclude each other.", code="usage")
    if uri or public:
        keyring = passphrase.Keyring(folder, passphrase_file)
        place, key = signers.import_public(uri, keyring.secret) if uri else ("", _public(public))
        stored = store.add_public(chosen, full, key, place)
    else:
        generated = keys.generate(chosen, full, algorithm)
        stored = store.add(generated, passphrase.for_new(folder, passphrase_file))
    voice.result(key_table.document(stored), f"{stored.name} is a key for {full}; it signs nothing "
                 f"until it is named.\nNext: {_next(stored)}")  # fmt: skip


@app.command("rotate")
@connected
def rotate(
    session: Session,
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY...",
            help="Names or key ids; or roles of the server's: director, snapshot, ...",
            autocompletion=completion.keys,
        ),
    ],
    to: To = None,
    algorithm: AlgorithmOption = keys.DEFAULT_ALGORITHM,
    prepare: signing.PrepareOption = None,
    passphrase_file: PassphraseOption = None,
    yes: signing.YesOption = False,
) -> None:
    """Put keys in others' places, everywhere they sign; the old ones count no more."""
    if to and len(names) > 1:
        raise InvalidInputError("--to is for one key.", code="usage", hint="Rotate one at a time.")
    desk = signing.open_desk(session)
    changes, keyring = desk.changes(), passphrase.Keyring(desk.folder, passphrase_file)
    told = []
    for name in names:
        if name in ONLINE_ROLES:
            file, new = _online(session, name, to)
            changes.replace_online(name, new)
            told.append(f"{name} is signed by {file}")
            continue
        old = desk.store.find(name)
        comes = []
        for role in _roles(changes, old):
            stored = desk.store.find(to) if to else _make(desk, role, algorithm, passphrase_file)
            changes.remove(role, old.keyid)
            changes.add(role, stored.key)
            comes.append(stored.name)
        told.append(f"{old.name} becomes {', '.join(comes)}")
    signing.settle(session, desk, changes, "; ".join(told), keyring, prepare=prepare, yes=yes)


@app.command("revoke")
@connected
def revoke(
    session: Session,
    key: KeyName,
    prepare: signing.PrepareOption = None,
    passphrase_file: PassphraseOption = None,
    yes: signing.YesOption = False,
) -> None:
    """Take a key out of every role; `rotate` where its role would have too few."""
    desk = signing.open_desk(session)
    changes, keyring = desk.changes(), passphrase.Keyring(desk.folder, passphrase_file)
    stored = None if key in ONLINE_ROLES else desk.store.find(key)
    if stored is None:
        raise InvalidInputError(
            f"The server has one key for {key}: it can only be replaced.",
            code="threshold",
            hint=f"`edgefleet keys rotate {key}` ends the old one at once.",
        )
    for role in _roles(changes, stored):
        changes.remove(role, stored.keyid)
    title = f"{stored.name} is revoked"
    signing.settle(session, desk, changes, title, keyring, prepare=prepare, yes=yes)


@app.command("backup")
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="New file, on a stick.")],
    fleet: FleetOption = None,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write an encrypted copy of the offline side, and read it back."""
    folder = need_folder(fleet)
    if file.exists():
        raise InvalidInputError(
            f"{file} exists already.", code="exists", hint="Name a new file; nothing was changed."
        )
    secret = passphrase.for_backup(passphrase_file)
    names = key_backup.write(file, folder, secret)
    elsewhere = [key.name for key in KeyStore(folder).all() if key.where != "file"]
    Output(as_json=as_json).result(
        {"file": str(file), "files": names, "not_in_it": elsewhere},
        f"{file} holds {len(names)} files, read back and compared.\n"
        + (f"Not in it, because not here: {', '.join(elsewhere)}.\n" if elsewhere else "")
        + "Next: put it into a safe, and its passphrase elsewhere.",
    )


@app.command("restore")
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `keys backup` wrote.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The new fleet folder.")],
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a fleet folder of a backup: its offline side."""
    names = key_backup.restore(file, folder, passphrase.of_backup(file, passphrase_file))
    Output(as_json=as_json).result(
        {"folder": str(folder.resolve()), "files": names},
        f"{folder} holds {len(names)} files of the offline side.\n"
        "Next: give --server and --token, or write offline/client.toml.",
    )


def _online(session: Session, role: str, to: str | None) -> tuple[str, Key]:
    """Return file and public half of the online key that comes: one of the server's, or new."""
    if to is None:
        found = session.api.post("/v1/trust/keys", {"role": role})
    else:
        listed: list[dict[str, Any]] = session.api.get("/v1/trust/keys")["keys"]
        unused = [key for key in listed if key["role"] == role and not key["active"]]
        fits = [key for key in unused if key["keyid"].startswith(to) or key["file"] == to]
        if len(fits) != 1:
            raise InvalidInputError(
                f"The server has no unused key {to[:80]!r} for {role}.",
                code="no_key",
                hint="`edgefleet keys list` shows what it has.",
            )
        found = fits[0]
    return str(found["file"]), keys.check_key_id(Key.from_dict(str(found["keyid"]), found["key"]))


def _roles(changes: Any, stored: StoredKey) -> list[str]:
    roles: list[str] = changes.roles_of(stored.keyid)
    if not roles:
        raise InvalidInputError(
            f"{stored.name} signs nothing in this fleet.",
            code="no_key",
            hint="`edgefleet keys list` shows which keys do.",
        )
    return roles


def _make(desk: signing.Desk, role: str, algorithm: str, passphrase_file: Path | None) -> StoredKey:
    generated = keys.generate(desk.store.next_name(role), role, algorithm)
    return desk.store.add(generated, passphrase.for_new(desk.folder, passphrase_file))


def _public(path: Path | None) -> Key:
    assert path is not None
    data = read(path, "public key", f"{path} is missing.", "Ask its holder for the .pub.json.")
    fields = strict_json.decode(data, dict[str, Any], max_bytes=MAX_BYTES, what=path.name)
    return key_store.decode_public(fields, path.name)[0]


def _next(stored: StoredKey) -> str:
    if stored.role.startswith("publisher/"):
        family = stored.role.partition("/")[2]
        return f"edgefleet trust delegate {family} --key {stored.name}"
    return f"edgefleet trust rotate-root --add {stored.name}"

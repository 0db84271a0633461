"""`edgefleet model provenance` and `sbom`: who vouches for a version's files, and what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from securesystemslib.signer import Key

from edgefleet_provisioning.api import Api, segment
from edgefleet_provisioning.catalog import Catalog
from edgefleet_provisioning.commands import completion
from edgefleet_provisioning.commands.session import Session, reading
from edgefleet_provisioning.durable import Content, write_file, write_tree
from edgefleet_provisioning.errors import NotFoundError
from edgefleet_provisioning.sbom import cyclonedx
from edgefleet_provisioning.settings import need_folder
from edgefleet_shared import provenance as signing
from edgefleet_shared.errors import InvalidInputError, TrustError
from edgefleet_shared.identifiers import sha256_digest
from edgefleet_shared.package import Manifest, decode_manifest, publisher_role

HELD_BYTES = 2 * 1024**3
"""Files that are held in memory to be written all at once; a larger package needs --no-files."""


@reading
def provenance(
    session: Session,
    model: Annotated[str, typer.Argument(autocompletion=completion.models)],
    version: Annotated[str, typer.Argument(autocompletion=completion.versions)],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="New folder for bundle, key and the signed files."),
    ] = None,
    no_files: Annotated[
        bool, typer.Option("--no-files", help="Leave the package's files out.")
    ] = False,
) -> None:
    """Check who signed a version's files (OpenSSF Model Signing), and download the proof."""
    folder = need_folder(session.fleet)
    catalog = Catalog(session.api, folder.root(), folder.trust_cache)
    path = f"/v1/models/{segment(model)}/versions/{segment(version)}"
    found = session.api.get(path)
    data = _signed_manifest(session.api, catalog, path, model, version)
    manifest = decode_manifest(data)
    if not found.get("provenance"):
        raise NotFoundError(
            f"{model} {version} was published without a signature bundle.",
            hint="The publisher's key was not ECDSA P-256, or it is older than bundles.",
        )
    bundle = _blob(session.api, found["provenance"])
    key, vouched = _open(bundle, _keys(catalog, model))
    signing.check_files(vouched, signing.resources_of(manifest, data))
    document = {
        "model": model,
        "version": version,
        "provenance": found["provenance"],
        "key": key.keyid,
        "files": [{"name": name, "sha256": vouched[name]} for name in sorted(vouched)],
    }
    what = f"the {len(vouched)} files of {model} {version}"
    said = f"The publisher's key {key.keyid[:12]} signed {what}."
    if output is None:
        session.output.result(document, said)
        return
    write_tree(output, _tree(session.api, bundle, key, manifest, data, with_files=not no_files))
    session.output.result(
        {**document, "folder": str(output.resolve())},
        f"{said}\nTo verify it by others' code:\n"
        f"  model_signing verify key {output}/package --signature {output}/model.sig"
        f" --public_key {output}/publisher.pem",
    )


@reading
def sbom(
    session: Session,
    model: Annotated[str, typer.Argument(autocompletion=completion.models)],
    version: Annotated[str, typer.Argument(autocompletion=completion.versions)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write it here instead of printing it.")
    ] = None,
) -> None:
    """Export what a version is made of, files and licences, as CycloneDX 1.6 JSON."""
    folder = need_folder(session.fleet)
    catalog = Catalog(session.api, folder.root(), folder.trust_cache)
    path = f"/v1/models/{segment(model)}/versions/{segment(version)}"
    data = _signed_manifest(session.api, catalog, path, model, version)
    document = cyclonedx(decode_manifest(data), data)
    text = json.dumps(document, indent=1)
    if output is None:
        session.output.result(document, text)
        return
    write_file(output, text.encode() + b"\n")
    session.output.result(
        {"file": str(output.resolve()), "components": len(document["components"])},
        f"The bill of materials of {model} {version} is in {output}.",
    )


def _signed_manifest(api: Api, catalog: Catalog, path: str, model: str, version: str) -> bytes:
    target = catalog.target(model, version)
    data = api.raw(f"{path}/manifest")
    if target is None or "sha256:" + target.hashes.get("sha256", "") != sha256_digest(data):
        raise TrustError(
            f"The server's manifest of {model} {version} is not the one that was signed.",
            code="manifest_differs",
        )
    return data


def _keys(catalog: Catalog, model: str) -> list[Key]:
    delegations = catalog.top().targets.signed.delegations
    role = (delegations.roles or {}).get(publisher_role(model)) if delegations else None
    found = [delegations.keys[keyid] for keyid in role.keyids] if delegations and role else []
    return [key for key in found if signing.can_sign(key)]


def _open(bundle: bytes, keys: list[Key]) -> tuple[Key, signing.Resources]:
    for key in keys:
        try:
            return key, signing.open_bundle(bundle, key)
        except TrustError:
            continue
    raise TrustError(
        "None of the publisher's present keys signed the bundle.",
        code="provenance",
        hint="A key that has been replaced is not believed any more.",
    )


def _tree(
    api: Api, bundle: bytes, key: Key, manifest: Manifest, data: bytes, *, with_files: bool
) -> dict[str, Content]:
    found = {"model.sig": Content(bundle), "publisher.pem": Content(signing.public_pem(key))}
    if not with_files:
        return found
    entries = {e.digest: e.size for v in manifest.variants for e in v.files}
    if sum(entries.values()) > HELD_BYTES:
        raise InvalidInputError(
            "The package is too large to be written in one go.",
            code="too_large",
            hint="Give --no-files, and fetch the files from the registry.",
        )
    found[f"package/{signing.MANIFEST_NAME}"] = Content(data)
    for name, digest in signing.resources_of(manifest, data).items():
        if name != signing.MANIFEST_NAME:
            found[f"package/{name}"] = Content(_blob(api, f"sha256:{digest}"))
    return found


def _blob(api: Api, digest: Any) -> bytes:
    data = api.raw(f"/v1/blobs/{segment(str(digest))}")
    if sha256_digest(data) != digest:
        raise TrustError(f"The server's blob {digest} is another.", code="digest_mismatch")
    return data

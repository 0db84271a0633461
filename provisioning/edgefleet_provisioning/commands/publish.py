"""`edgefleet model publish`: from a model file to a version that devices may run."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgefleet_provisioning import passphrase
from edgefleet_provisioning.api import Api
from edgefleet_provisioning.commands import arguments
from edgefleet_provisioning.commands.session import (
    FleetOption,
    JsonOption,
    PassphraseOption,
    ReasonOption,
    ServerOption,
    TokenOption,
)
from edgefleet_provisioning.key_store import KeyStore
from edgefleet_provisioning.output import Output
from edgefleet_provisioning.progress import UploadProgress
from edgefleet_provisioning.seen import Seen
from edgefleet_provisioning.settings import connection, need_folder
from edgefleet_shared.identifiers import sha256_digest
from edgefleet_shared.package import ContainerNeed, publisher_role

if TYPE_CHECKING:
    from edgefleet_provisioning.packaging import Draft
    from edgefleet_provisioning.publishing import Release


def publish(
    name: Annotated[str, typer.Option(help="Model name, for example digits.")],
    version: Annotated[str, typer.Option(help="MAJOR.MINOR.PATCH; never published twice.")],
    model: Annotated[
        Path | None,
        typer.Argument(metavar="[MODEL]", help="The model: .onnx or .tflite; or give --image."),
    ] = None,
    image: Annotated[
        str, typer.Option(metavar="NAME@sha256:HEX", help="A container that answers; no tag.")
    ] = "",
    tensors: Annotated[
        Path | None, typer.Option(help="With --image alone: JSON of its inputs and outputs.")
    ] = None,
    port: Annotated[int, typer.Option(help="TCP port in the container. Default: a socket.")] = 0,
    served_as: Annotated[str, typer.Option(help="The model's name in the container.")] = "",
    concurrency: Annotated[int, typer.Option(help="Requests at once in the container.")] = 1,
    cpus: Annotated[float, typer.Option(help="Processors of the container.")] = 0.0,
    pids: Annotated[int, typer.Option(help="Processes and threads in the container.")] = 256,
    golden: Annotated[
        Path | None, typer.Option(help="npz of inputs, with answers or without.")
    ] = None,
    sample: Annotated[Path | None, typer.Option(help="npz of training inputs, for drift.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Text file, one label a line.")] = None,
    processing: Annotated[
        Path | None,
        typer.Option(help="TOML or JSON: steps before and after the model, as JPEG to labels."),
    ] = None,
    max_batch_size: Annotated[
        int, typer.Option(help="Rows that a device may run as one. Default: no batching.")
    ] = 0,
    max_queue_delay_us: Annotated[
        int, typer.Option(help="Microseconds that a request may wait for others to join.")
    ] = 0,
    spdx: Annotated[
        str, typer.Option("--license", help="SPDX expression. Default: NOASSERTION.")
    ] = "",
    file_license: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH=SPDX", help="Of one file, as labels.txt=CC0-1.0; repeat it."),
    ] = None,
    source: Annotated[
        str, typer.Option(help="Where the model comes from: a commit, a training run, a URL.")
    ] = "",
    description: Annotated[str, typer.Option(help="One line for people.")] = "",
    hardware: Annotated[
        list[str] | None, typer.Option(help="Hardware id it runs on; repeat it. Default: any.")
    ] = None,
    memory_mb: Annotated[
        int | None, typer.Option(help="Memory it may take; default by its size.")
    ] = None,
    load_s: Annotated[int, typer.Option(help="Seconds it may take to load and prove.")] = 60,
    variants: Annotated[
        Path | None, typer.Option(help="TOML: further variants, as TFLite beside ONNX.")
    ] = None,
    require_signature: Annotated[
        Path | None,
        typer.Option(metavar="KEY.pub", help="PEM of the key that must have signed the model."),
    ] = None,
    signature: Annotated[
        Path | None,
        typer.Option(help="Its Model Signing bundle; default: model.sig beside the model."),
    ] = None,
    security_floor: Annotated[
        int | None, typer.Option(help="Forbid versions with a lower release counter.")
    ] = None,
    max_tensor_mb: Annotated[int, typer.Option(min=1, help="MiB that one tensor may take.")] = 2048,
    release_counter: Annotated[
        int, typer.Option(min=1, help="With --output only: the place among versions.")
    ] = 1,
    output: Annotated[
        Path | None, typer.Option(help="Only write an OCI image layout into this new folder.")
    ] = None,
    fleet: FleetOption = None,
    server: ServerOption = None,
    token: TokenOption = None,
    passphrase_file: PassphraseOption = None,
    reason: ReasonOption = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Package a model, sign it, and bring it to the fleet manager. May be repeated safely."""
    # numpy and onnx take half a second that other commands need not pay.
    from edgefleet_provisioning.package_build import Counters, Description
    from edgefleet_provisioning.packaging import Request, prepare

    voice = Output(as_json=as_json)
    about = Description(
        name, version, spdx, description, tuple(hardware or ("*",)), memory_mb, load_s,
        file_licenses=arguments.file_licenses(file_license or []), source=source,
    )  # fmt: skip
    request = Request(
        model, about, golden, sample, labels, max_tensor_mb, require_signature, signature,
        processing, variants, image, tensors,
        ContainerNeed(port, served_as, concurrency, cpus, pids),
        arguments.batching(max_batch_size, max_queue_delay_us),
    )  # fmt: skip
    if output:
        draft = prepare(request, voice.note)
        _write_layout(voice, draft, Counters(release_counter, security_floor or 0), output)
        return
    folder = need_folder(fleet)
    with Api(connection(server, token, fleet), reason) as api:
        draft = prepare(request, voice.note)
        _publish(voice, api, folder, draft, security_floor, passphrase_file, ask=not yes)


def _publish(
    voice: Output,
    api: Api,
    folder: Any,
    draft: Draft,
    floor: int | None,
    passphrase_file: Path | None,
    *,
    ask: bool,
) -> None:
    from edgefleet_provisioning import publishing
    from edgefleet_provisioning.catalog import Catalog

    name = draft.about.name
    catalog = Catalog(api, folder.root(), folder.trust_cache)
    current = catalog.publisher(name)
    seen = Seen(folder.trust_cache)
    seen.check({publisher_role(name): current.signed.version})
    published = publishing.find_published(api, catalog, draft, floor)
    if published:
        _report(voice, published, "was published before, with the same content", already=True)
        return
    counters = publishing.counters(current.signed, floor)
    if ask and voice.interactive:
        typer.confirm(f"Publish {name} {draft.about.version} to {api.server}?", abort=True)
    key = publishing.choose_key(catalog, KeyStore(folder), name)
    signer = passphrase.Keyring(folder, passphrase_file).signer(key)
    release = publishing.sign(current, draft, signer, counters, datetime.now(UTC))
    with UploadProgress(voice.notes) as progress:
        publishing.send(api, draft, release, progress.tell)
    seen.remember({publisher_role(name): current.signed.version})
    _report(voice, release, f"is published at {api.server}", already=False)


def _report(voice: Output, release: Release, what: str, *, already: bool) -> None:
    manifest = release.manifest
    document = {
        "model": manifest.name,
        "version": manifest.version,
        "manifest": release.digest,
        "size": len(release.data),
        "release_counter": manifest.release_counter,
        "security_floor": manifest.security_floor,
        "already_published": already,
        "provenance": sha256_digest(release.bundle) if release.bundle else "",
        "files": [
            {"path": e.path, "digest": e.digest, "size": e.size, "role": e.role}
            for v in manifest.variants
            for e in v.files
        ],
    }
    voice.result(
        document,
        f"{manifest.name} {manifest.version} {what}.\n"
        f"  manifest         {release.digest}\n"
        f"  release counter  {manifest.release_counter}\n"
        f"Next: edgefleet rollout create {manifest.name} {manifest.version} --watch",
    )


def _write_layout(voice: Output, draft: Draft, counters: Any, folder: Path) -> None:
    from edgefleet_provisioning import oci_layout
    from edgefleet_shared.package import encode_manifest

    manifest = draft.manifest(counters, datetime.now(UTC))
    data = encode_manifest(manifest)
    oci_layout.write(folder, manifest, data, draft.blobs)
    document = {"manifest": sha256_digest(data), "folder": str(folder.resolve())}
    voice.result(
        document,
        f"{manifest.name} {manifest.version} lies in {folder}, unsigned and unpublished.\n"
        f"  manifest  {document['manifest']}",
    )

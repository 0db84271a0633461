"""`edgefleet model`: lint, publish, list, show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgefleet_provisioning.api import segment
from edgefleet_provisioning.commands import completion
from edgefleet_provisioning.commands.provenance import provenance, sbom
from edgefleet_provisioning.commands.publish import publish
from edgefleet_provisioning.commands.session import JsonOption, Session, reading
from edgefleet_provisioning.licenses import NOASSERTION
from edgefleet_provisioning.output import Output
from edgefleet_provisioning.sbom import files_of
from edgefleet_shared.package import decode_manifest

app = typer.Typer(help="Lint, publish and look at models.", no_args_is_help=True)
app.command("publish")(publish)
app.command("provenance")(provenance)
app.command("sbom")(sbom)


@app.command("lint")
def lint_(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The model: .onnx or .tflite.")],
    max_tensor_mb: Annotated[int, typer.Option(min=1, help="MiB that one tensor may take.")] = 2048,
    as_json: JsonOption = False,
) -> None:
    """Say whether a model may be published, and if not, why and what to do."""
    from edgefleet_provisioning.lint import lint  # onnx takes 0.3 s that others need not pay

    output = Output(as_json=as_json)
    report = lint(model, max_tensor_mb)
    findings = [{"code": f.code, "message": f.message, "hint": f.hint} for f in report.findings]
    document = {
        "ok": not findings,
        "findings": findings,
        "nodes": report.nodes,
        "tensors": report.tensors,
        "external": report.external,
        "inputs": [_spec(spec) for spec in report.inputs],
        "outputs": [_spec(spec) for spec in report.outputs],
    }
    if not findings:
        signature = [*_lines("takes", report.inputs), *_lines("gives", report.outputs)]
        text = f"{model.name} may be published: {report.nodes} nodes, {report.tensors} tensors."
        output.result(document, "\n".join([text, *signature]))
        return
    if as_json:
        output.line(document)
    else:
        for finding in report.findings:
            output.note(f"{finding.code}: {finding.message} {finding.hint}")
    raise typer.Exit(2)


@app.command("list")
@reading
def list_(session: Session) -> None:
    """List the models of the fleet."""
    models = session.api.items("/v1/models")
    rows = [(m.get("name"), m.get("description"), m.get("created")) for m in models]
    session.output.table(models, ("name", "description", "created"), rows)


@app.command("show")
@reading
def show(
    session: Session,
    model: Annotated[str, typer.Argument(autocompletion=completion.models)],
    version: Annotated[str | None, typer.Argument(autocompletion=completion.versions)] = None,
    at: Annotated[
        str | None, typer.Option(help="With a version: who ran it at this time (RFC 3339).")
    ] = None,
) -> None:
    """Show a model's versions, or one version and the devices that run it."""
    path = f"/v1/models/{segment(model)}"
    if version is None:
        found = session.api.get(path)
        versions = session.api.items(f"{path}/versions")
        session.output.table(
            {**found, "versions": versions},
            ("version", "manifest", "size", "counter", "floor", "created"),
            [_version_row(v) for v in versions],
        )
        return
    path = f"{path}/versions/{segment(version)}"
    found = session.api.get(path)
    manifest = decode_manifest(session.api.raw(f"{path}/manifest"))
    files = files_of(manifest)
    devices = session.api.items(f"{path}/devices", at=at or "")
    names = ", ".join(_device_name(d) for d in devices)
    session.output.details(
        {**found, "files": files, "made_with": manifest.provenance, "devices": devices},
        [
            *((k, v) for k, v in found.items() if k != "variants"),
            ("license", manifest.license or NOASSERTION),
            *manifest.provenance.items(),
            *((f"file {f['path']}", _file(f)) for f in files),
            ("devices", names),
        ],
    )


def _version_row(version: dict[str, Any]) -> tuple[object, ...]:
    keys = ("version", "manifest", "size", "release_counter", "security_floor", "created")
    return tuple(version.get(key) for key in keys)


def _file(file: dict[str, Any]) -> str:
    source = f", {file['source']}" if file["source"] else ""
    return f"{file['role']}, {file['size']} bytes, {file['license']}{source}, {file['digest']}"


def _device_name(device: Any) -> str:
    return (
        str(device.get("device") or device.get("id")) if isinstance(device, dict) else str(device)
    )


def _spec(spec: Any) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}


def _lines(verb: str, specs: list[Any]) -> list[str]:
    return [f"  {verb} {spec.name!r} {spec.datatype} {spec.shape}" for spec in specs]

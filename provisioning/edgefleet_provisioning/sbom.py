"""What a package is made of, as a list of files with licences: for people, and as CycloneDX. Pure.

Source: CycloneDX 1.6, the JSON schema bom-1.6; AI models are components of type
`machine-learning-model`.
"""

from __future__ import annotations

import uuid
from typing import Any

from edgefleet_provisioning.licenses import NOASSERTION
from edgefleet_shared.identifiers import sha256_digest
from edgefleet_shared.package import FileEntry, Manifest, TensorSpec

_SOURCES = {
    "golden": "computed from the publisher's inputs when the package was made",
    "labels": "given by the publisher",
}
_MODEL_ROLES = {"onnx", "onnx_external", "tflite"}
# Any fixed namespace: the same manifest has the same serial number, whoever exports it.
_NAMESPACE = uuid.UUID("5b6f4f4e-2f0c-5d3e-9c57-8d0e4b8f7a11")


def files_of(manifest: Manifest) -> list[dict[str, Any]]:
    """Return every distinct file: path, digest, size, role, licence, source and its variants."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for variant in manifest.variants:
        for entry in variant.files:
            said = found.setdefault((entry.path, entry.digest), _file(manifest, entry))
            said["variants"].append(variant.id)
    return list(found.values())


def cyclonedx(manifest: Manifest, data: bytes) -> dict[str, Any]:
    """Return a bill of materials in CycloneDX 1.6.

    Args:
        manifest: What a version is made of.
        data: The manifest's exact bytes.
    """
    digest = sha256_digest(data)
    components = [
        _component(number, file) for number, file in enumerate(files_of(manifest), start=1)
    ]
    model = f"{manifest.name}@{manifest.version}"
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, digest)}",
        "version": 1,
        "metadata": {
            "timestamp": manifest.created,
            "tools": {"components": _tools(manifest)},
            "component": _model(manifest, digest, model),
        },
        "components": components,
        "dependencies": [{"ref": model, "dependsOn": [c["bom-ref"] for c in components]}],
    }


def _file(manifest: Manifest, entry: FileEntry) -> dict[str, Any]:
    source = manifest.provenance.get("source", "") if entry.role in _MODEL_ROLES else ""
    return {
        "path": entry.path,
        "digest": entry.digest,
        "size": entry.size,
        "role": entry.role,
        "license": entry.license or NOASSERTION,
        "source": source or _SOURCES.get(entry.role, ""),
        "variants": [],
    }


def _component(number: int, file: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "file",
        "bom-ref": f"file-{number}",
        "name": file["path"],
        "hashes": [_hash(file["digest"])],
        **_licenses(file["license"]),
        "properties": _properties({
            "role": file["role"],
            "size": str(file["size"]),
            "license": file["license"],
            "source": file["source"],
            "variants": " ".join(file["variants"]),
        }),
    }  # fmt: skip


def _model(manifest: Manifest, digest: str, ref: str) -> dict[str, Any]:
    variant = manifest.variants[0]
    opsets = {
        f"opset.{domain}": str(number)
        for v in manifest.variants
        for domain, number in v.runtime.opsets.items()
    }
    return {
        "type": "machine-learning-model",
        "bom-ref": ref,
        "name": manifest.name,
        "version": manifest.version,
        **({"description": manifest.description} if manifest.description else {}),
        "hashes": [_hash(digest)],
        **_licenses(manifest.license or NOASSERTION),
        "modelCard": {
            "modelParameters": {
                "inputs": [_tensor(spec) for spec in variant.inputs],
                "outputs": [_tensor(spec) for spec in variant.outputs],
            }
        },
        "properties": _properties({
            "manifest": digest,
            "release_counter": str(manifest.release_counter),
            "security_floor": str(manifest.security_floor),
            "license": manifest.license or NOASSERTION,
            **opsets,
            **{key: manifest.provenance[key] for key in sorted(manifest.provenance)},
        }),
    }  # fmt: skip


def _tools(manifest: Manifest) -> list[dict[str, str]]:
    """Return the programs that made the package; the exporter of the model is one of them."""
    said = [
        manifest.provenance.get("producer", ""),
        *manifest.provenance.get("tools", "").split("; "),
    ]
    found = []
    for tool in filter(None, said):
        name, _, version = tool.partition(" ")
        found.append({
            "type": "application", "name": name, **({"version": version} if version else {}),
        })  # fmt: skip
    return found


def _licenses(expression: str) -> dict[str, Any]:
    """Return CycloneDX's words for a licence; it has none for NOASSERTION but to say nothing."""
    return {} if expression == NOASSERTION else {"licenses": [{"expression": expression}]}


def _hash(digest: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": digest.removeprefix("sha256:")}


def _properties(found: dict[str, str]) -> list[dict[str, str]]:
    return [{"name": f"edgefleet:{name}", "value": value} for name, value in found.items() if value]


def _tensor(spec: TensorSpec) -> dict[str, str]:
    shape = ",".join("?" if size < 0 else str(size) for size in spec.shape)
    return {"format": f"{spec.name}: {spec.datatype}[{shape}]"}

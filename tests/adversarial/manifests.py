"""Manifests as bytes, so that they can say what no publisher's tool writes."""

from __future__ import annotations

import json

from tuf.api.metadata import TargetFile

from edgefleet_shared.identifiers import new_id, sha256_digest
from edgefleet_shared.messages import SlotAssignment
from edgefleet_shared.package import target_path
from tests.agent.world import QUICK, World

DIGEST = sha256_digest(b"four")


def manifest_with(*paths: str) -> bytes:
    """Return a manifest's JSON whose only variant has files of these paths."""
    entry = {"digest": DIGEST, "size": 4, "role": "onnx"}
    files = [{"path": path, **entry} for path in paths]
    tensor = {"name": "x", "datatype": "FP32", "shape": [1]}
    variant = {
        "id": "cpu", "hardware": ["*"], "accelerator": "cpu", "runtime": {"name": "onnxruntime"},
        "files": files, "inputs": [tensor], "outputs": [tensor],
    }  # fmt: skip
    manifest = {
        "schema": 1, "name": "digits", "version": "2.0.0", "release_counter": 2,
        "security_floor": 0, "created": "2026-01-01T00:00:00Z", "variants": [variant],
    }  # fmt: skip
    return json.dumps(manifest).encode()


def sign_bytes(world: World, data: bytes) -> SlotAssignment:
    """Let the publisher sign any bytes as the manifest of digits 2.0.0."""
    role, path = world.publishers["digits"], target_path("digits", "2.0.0")
    target = TargetFile.from_data(path, data, ["sha256"])
    target.unrecognized_fields["custom"] = {
        "release_counter": 2, "security_floor": 0, "hardware": ["*"],
    }  # fmt: skip
    role.targets[path] = target
    role.version += 1
    world.release()
    world.blobs[sha256_digest(data)] = data
    return SlotAssignment(
        "run", new_id(), "digits", "2.0.0", sha256_digest(data), len(data), 2, policy=QUICK
    )

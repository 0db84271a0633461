"""A device, real but for its network: agentd in this process, gateway and workers outside."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import msgspec

from edgefleet_agent import compose
from edgefleet_shared.identifiers import sha256_digest
from edgefleet_shared.package import FileEntry, Manifest
from tests.agent.gateways import UnixConnection, fp32
from tests.agent.running import Agent
from tests.agent.world import World, until
from tests.fakes.memory_transport import MemoryTransport
from tests.models import linear


class Device(Agent):
    """An agent with the gateway, zygote and workers of the distribution.

    Args:
        world: Its fleet.
        environ: More environment for the gateway and what it starts.
        options: As `Agent`.
    """

    def __init__(self, world: World, environ: dict[str, str] | None = None, **options: Any) -> None:
        super().__init__(world, inference={"tcp": "127.0.0.1:0"}, **options)
        self.gateway.close()
        self.environ = {**os.environ, **(environ or {})}

    def start(self) -> Device:
        """Start agentd, which starts the rest."""
        desired = self.transport.desired
        self.transport = MemoryTransport()
        self.transport.desired = desired
        self.daemon = compose.build(self.config, transport=self.transport, environ=self.environ)
        self._thread = threading.Thread(target=self.daemon.run, daemon=True)
        self._thread.start()
        return self

    def answers(self, model: str = "digits") -> float | None:
        """Return what the served model makes of four ones; None if nothing is served."""
        connection = UnixConnection(self.run_dir / "infer.sock")
        try:
            connection.request(
                "POST", f"/v2/models/{model}/infer", json.dumps(fp32("x", [1] * 4, [1, 4]))
            )
            answer = connection.getresponse()
            body = json.loads(answer.read())
        except OSError:
            return None
        finally:
            connection.close()
        return body["outputs"][0]["data"][0] if answer.status == 200 else None

    def serve(self, version: str = "1.0.0", scale: float = 2.0) -> Any:
        """Bring a good version to success; it multiplies the sum of its input."""
        slot = self.world.publish(version, body=linear(scale))
        self.assign(slot)
        until(lambda: self.ended(slot) == "succeeded", f"success; {self.transport.slot('digits')}")
        assert self.answers() == 4 * scale
        return slot

    def ended(self, slot: Any) -> str:
        """Return the reported state of a deployment, '' while another is reported."""
        report = self.transport.slot(slot.model)
        return report["state"] if report.get("deployment") == slot.deployment else ""

    def fails(self, slot: Any) -> dict[str, Any]:
        """Wait for the end of a deployment that must not succeed, and return its report."""
        until(
            lambda: self.ended(slot) in {"failed", "rejected", "succeeded"},
            f"an end; {self.transport.slot('digits')}",
        )
        assert self.ended(slot) != "succeeded"
        return self.transport.slot(slot.model)

    def files(self) -> set[Path]:
        """Return every file below the device's folder."""
        return {path for path in self.folder.rglob("*") if path.is_file()}


def with_files(world: World, files: dict[str, tuple[bytes, str]]) -> Any:
    """Return a change of a manifest that adds files (path to bytes and role) to its variant."""

    def change(manifest: Manifest) -> Manifest:
        entries = []
        for path, (data, role) in files.items():
            digest = sha256_digest(data)
            world.blobs[digest] = data
            entries.append(FileEntry(path, digest, len(data), role))  # type: ignore[arg-type]
        variant = manifest.variants[0]
        variant = msgspec.structs.replace(variant, files=[*variant.files, *entries])
        return msgspec.structs.replace(manifest, variants=[variant])

    return change

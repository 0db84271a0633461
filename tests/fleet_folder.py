"""A fleet folder with real keys and a real TUF repository, made by `edgefleet init`'s own plan."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

from tuf.api.metadata import Metadata, Targets

from edgefleet_provisioning import durable, fleet_plan, keys, repository
from edgefleet_shared.identifiers import sha256_digest
from edgefleet_shared.package import (
    FileEntry,
    Manifest,
    RuntimeNeed,
    TensorSpec,
    Variant,
    encode_manifest,
    publisher_role,
)

CREATED = "2026-11-21T00:00:00Z"


class FleetFolder:
    """A fleet folder: `path/online` is the server's, `path/offline` the owner's."""

    def __init__(self, path: Path, families=("digits",), *, now: datetime | None = None) -> None:
        self.path = path
        plan = fleet_plan.FleetPlan(
            fleet="demo",
            families=families,
            root_keys=3,
            root_threshold=2,
            targets_keys=3,
            targets_threshold=2,
            server="",
            listen="127.0.0.1:0",
            passphrase=None,
        )
        durable.write_tree(path, fleet_plan.files(plan, now or datetime.now(UTC)))

    @property
    def online(self) -> Path:
        """The server's side."""
        return self.path / "online"

    @property
    def metadata(self) -> Path:
        """The TUF repository."""
        return self.online / "metadata"

    @property
    def config(self) -> Path:
        """The server's configuration."""
        return self.online / "cloud.toml"

    @property
    def token(self) -> str:
        """The administrator's token."""
        return (self.online / "admin.token").read_text().strip()

    def signer(self, name: str):
        """Return an offline signer, for example `publisher-1`."""
        return keys.decode_private(
            (self.path / "offline" / "keys" / f"{name}.pem").read_bytes(), None, name
        )

    def current(self, role: str) -> Metadata:
        """Return the newest version of a role, for example `publisher/digits`."""
        found = self.metadata.glob(f"*.{quote(role, '')}.json")
        newest = max(found, key=lambda path: int(path.name.partition(".")[0]))
        return Metadata.from_bytes(newest.read_bytes())

    def release(
        self, manifest: Manifest, data: bytes, *, signer=None, publisher=None, now=None
    ) -> bytes:
        """Return the publisher's next role file, which also releases this manifest."""
        return repository.release(
            publisher or self.current(publisher_role(manifest.name)),
            manifest,
            data,
            signer or self.signer("publisher-1"),
            now or datetime.now(UTC),
        )

    def resign(self, role: str, change, signers: list[str]) -> tuple[str, bytes]:
        """Return name and bytes of a role's next version, changed and signed by these keys."""
        metadata = self.current(role)
        metadata.signed.version += 1
        metadata.signed.expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=100)
        change(metadata.signed)
        metadata.signatures.clear()
        for name in signers:
            metadata.sign(self.signer(name), append=True)
        return f"{metadata.signed.version}.{quote(role, '')}.json", metadata.to_bytes()


def small_package(
    version: str = "1.0.0", counter: int = 1, *, name: str = "digits", floor: int = 0
) -> tuple[Manifest, bytes, dict[str, bytes]]:
    """Return a manifest, its bytes and its blobs by digest; the model's bytes mean nothing."""
    content = f"a model called {name} {version}".encode()
    digest = sha256_digest(content)
    variant = Variant(
        id="onnx-cpu",
        hardware=["*"],
        accelerator="cpu",
        runtime=RuntimeNeed("onnxruntime"),
        files=[FileEntry("model.onnx", digest, len(content), "onnx")],
        inputs=[TensorSpec("x", "FP32", [-1, 4])],
        outputs=[TensorSpec("y", "FP32", [-1, 2])],
    )
    manifest = Manifest(1, name, version, counter, floor, CREATED, [variant])
    return manifest, encode_manifest(manifest), {digest: content}


def without_targets(signed: Targets) -> None:
    """Forget every release: what no publisher may do."""
    signed.targets.clear()

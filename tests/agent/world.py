"""A whole tiny fleet without a fleet manager: keys, a TUF repository, a director, a blob server.

Everything in it is signed for real; only the network is short and the model is a few bytes.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Key,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from edgefleet_agent.identity import Enrollment, Identity, TransportInfo, load_or_make_key
from edgefleet_agent.trust.floors import Floors, FloorStore
from edgefleet_shared import bundle, dsse, strict_json
from edgefleet_shared.identifiers import new_id, sha256_digest
from edgefleet_shared.messages import (
    ASSIGNMENT_TYPE,
    Assignment,
    Desired,
    Policy,
    SlotAssignment,
)
from edgefleet_shared.package import (
    FileEntry,
    Limits,
    Manifest,
    RuntimeNeed,
    TensorSpec,
    Variant,
    encode_manifest,
    publisher_role,
    target_path,
)
from edgefleet_shared.trust import format_time
from tests.agent.blob_server import BlobServer

QUICK = Policy(probation_s=0, min_requests=0, standby_s=0, drain_s=0)
ROLES = ("root", "targets", "publisher", "snapshot", "timestamp", "director", "stranger")


class World:
    """The cloud's side of trust, with every key at hand.

    Args:
        fleet: The fleet's name.
        models: Each gets a publisher role of the same key.
    """

    def __init__(self, fleet: str = "demo", models: tuple[str, ...] = ("digits",)) -> None:
        self.fleet = fleet
        self.keys = {name: CryptoSigner.generate_ecdsa() for name in ROLES}
        self.blobs: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.server = BlobServer(self.blobs)
        self.counter = 0
        later = datetime.now(UTC) + timedelta(days=30)
        self.root = Root(expires=later)
        for role in ("root", "targets", "snapshot", "timestamp"):
            self.root.add_key(self.key(role), role)
        self.targets = Targets(expires=later)
        self.publishers = {name: Targets(expires=later) for name in models}
        roles = {
            publisher_role(name): DelegatedRole(
                publisher_role(name), [self.key("publisher").keyid], 1, True, [f"models/{name}/*/*"]
            )
            for name in models
        }
        roles["director"] = DelegatedRole(
            "director", [self.key("director").keyid], 1, True, ["assignments/*"]
        )
        keys = {self.key(name).keyid: self.key(name) for name in ("publisher", "director")}
        self.targets.delegations = Delegations(keys, roles)
        self.snapshot = Snapshot(expires=later)
        self.timestamp = Timestamp(expires=later)
        self.first_root = self.sign(self.root, "root")
        self.files["1.root.json"] = self.first_root
        self.release()

    def key(self, name: str) -> Key:
        """Return a public key."""
        return self.keys[name].public_key

    def sign(self, signed: Any, *names: str) -> bytes:
        """Return metadata signed by the keys named."""
        metadata = Metadata(signed)
        for name in names:
            metadata.sign(self.keys[name], append=True)
        return metadata.to_bytes()

    def release(self, **signers: str) -> None:
        """Sign targets, publishers, snapshot and timestamp anew; `publisher="stranger"` lies."""
        roles = {"targets": (self.targets, "targets")}
        for name, role in self.publishers.items():
            roles[publisher_role(name)] = (role, "publisher")
        for name, (role, key) in roles.items():
            quoted = name.replace("/", "%2F")
            data = self.sign(role, signers.get(key, key))
            self.files[f"{role.version}.{quoted}.json"] = data
            self.snapshot.meta[f"{name}.json"] = MetaFile(role.version)
        self.snapshot.version += 1
        self.files[f"{self.snapshot.version}.snapshot.json"] = self.sign(
            self.snapshot, signers.get("snapshot", "snapshot")
        )
        self.timestamp.version += 1
        self.timestamp.snapshot_meta = MetaFile(self.snapshot.version)
        self.files["timestamp.json"] = self.sign(
            self.timestamp, signers.get("timestamp", "timestamp")
        )

    def publish(
        self,
        version: str,
        *,
        model: str = "digits",
        counter: int = 0,
        floor: int = 0,
        body: bytes = b"",
        change: Callable[[Manifest], Manifest] = lambda manifest: manifest,
    ) -> SlotAssignment:
        """Publish a version and return what an assignment says of it."""
        role = self.publishers[model]
        weights = body or f"weights of {model} {version} ".encode() * 1000
        digest = sha256_digest(weights)
        self.blobs[digest] = weights
        counter = counter or len(role.targets) + 1
        manifest = change(
            Manifest(
                schema=1,
                name=model,
                version=version,
                release_counter=counter,
                security_floor=floor,
                created="2026-01-01T00:00:00Z",
                variants=[a_variant(digest, len(weights))],
            )
        )
        data = encode_manifest(manifest)
        name = sha256_digest(data)
        self.blobs[name] = data
        path = target_path(model, version)
        target = TargetFile.from_data(path, data, ["sha256"])
        target.unrecognized_fields["custom"] = {
            "release_counter": counter,
            "security_floor": floor,
            "hardware": ["*"],
        }
        role.targets[path] = target
        role.version += 1
        self.release()
        return SlotAssignment(
            "run", new_id(), model, version, name, len(data), counter, policy=QUICK
        )

    def assignment(self, identity: Identity, *slots: SlotAssignment, **fields: Any) -> bytes:
        """Return a sealed assignment; `signer` and any field may be changed."""
        self.counter = fields.pop("counter", self.counter + 1)
        signer = fields.pop("signer", "director")
        assignment = Assignment(
            v=1,
            fleet=self.fleet,
            device=identity.device,
            key=identity.who.key,
            counter=self.counter,
            issued=format_time(datetime.now(UTC)),
            expires=format_time(datetime.now(UTC) + timedelta(hours=1)),
            slots={slot.model: slot for slot in slots},
        )
        assignment = msgspec.structs.replace(assignment, **fields)
        return dsse.seal(strict_json.encode(assignment), ASSIGNMENT_TYPE, self.keys[signer])

    def desired(
        self, envelope: bytes, *, files: dict[str, bytes] | None = None, counter: int | None = None
    ) -> bytes:
        """Return a desired document around an envelope."""
        packed = bundle.encode(self.files if files is None else files)
        return strict_json.encode(
            Desired(
                v=1,
                counter=self.counter if counter is None else counter,
                ts=format_time(datetime.now(UTC)),
                assignment=base64.b64encode(envelope).decode(),
                bundle=base64.b64encode(packed).decode(),
                blobs=self.server.url,
            )
        )

    def assign(self, identity: Identity, *slots: SlotAssignment, **fields: Any) -> bytes:
        """Return a desired document that assigns the slots."""
        return self.desired(self.assignment(identity, *slots, **fields))

    def enrolled(
        self, state: Path, device: str = "cam-1", url: str = "mqtt://127.0.0.1:1"
    ) -> Identity:
        """Make an enrolled device's state folder, as `enroll` would leave it."""
        folder = state / "identity"
        folder.mkdir(parents=True)
        (state / "trust").mkdir()
        key = load_or_make_key(folder)
        (folder / "device.crt").write_bytes(certificate(key, device, key).encode())
        (folder / "root.json").write_bytes(self.first_root)
        FloorStore(state / "trust").commit(Floors(root=1))
        enrollment = Enrollment(1, self.fleet, device, TransportInfo("mqtt", url), self.server.url)
        (folder / "enrollment.json").write_bytes(strict_json.encode(enrollment))
        return Identity(folder)

    def close(self) -> None:
        """End the blob server."""
        self.server.close()


def certificate(public: Any, device: str, issuer: Any, days: int = 30) -> str:
    """Return a certificate in PEM for the public half of `public`, signed by `issuer`."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, device)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=days))
        .sign(issuer, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM).decode()


def a_variant(digest: str, size: int, **fields: Any) -> Variant:
    """Return a variant with one model file that runs anywhere."""
    variant = Variant(
        id="cpu",
        hardware=["*"],
        accelerator="cpu",
        runtime=RuntimeNeed("onnxruntime"),
        files=[FileEntry("model.onnx", digest, size, "onnx")],
        inputs=[TensorSpec("x", "FP32", [-1, 4])],
        outputs=[TensorSpec("y", "FP32", [-1, 2])],
        limits=Limits(load_s=5),
    )
    return msgspec.structs.replace(variant, **fields)


def until(condition: Callable[[], Any], what: str = "", seconds: float = 20.0) -> Any:
    """Wait until something is true, and return it."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if found := condition():
            return found
        pause.wait(0.01)
    raise AssertionError(f"waited {seconds} s in vain: {what}")

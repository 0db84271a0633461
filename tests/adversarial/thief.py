"""Who has broken into the fleet manager: its folder, its broker, its blob store, its database.

Everything here is made from `online/` alone: the keys of snapshot, timestamp, director, audit and
device CA, the public metadata, and what the database knows of a device (its id, its key's digest).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, MetaFile, Root, TargetFile

from edgefleet_shared import bundle, dsse, strict_json, topics
from edgefleet_shared.identifiers import new_id, sha256_digest
from edgefleet_shared.messages import ASSIGNMENT_TYPE, Assignment, Desired, SlotAssignment
from edgefleet_shared.package import Manifest, encode_manifest, target_path
from edgefleet_shared.times import format_time
from edgefleet_shared.trust import DeviceIdentity
from tests.agent.blob_server import BlobServer
from tests.agent.world import QUICK, a_variant
from tests.models import linear

Files = dict[str, bytes]
EVIL_SCALE = 666.0
STOLEN = ("snapshot", "timestamp", "director", "audit", "device-ca")


class Thief:
    """The attacker.

    Args:
        online: The server's folder.
        device: What the database says of the device.
        server: Where the device fetches; the thief answers there.
        blobs: What is served there.
        client: A connection to the broker that may publish anything.
    """

    def __init__(
        self,
        online: Path,
        device: DeviceIdentity,
        server: BlobServer,
        blobs: dict[str, bytes],
        client: Any,
    ) -> None:
        self._online, self._device, self._server = online, device, server
        self._blobs, self._client = blobs, client
        self.counter, self._step = 0, 0
        self.own = CryptoSigner.generate_ecdsa()
        self.keys = {name: self._steal(name) for name in STOLEN}

    def _steal(self, name: str) -> CryptoSigner:
        data = (self._online / "keys" / f"{name}.pem").read_bytes()
        key: Any = load_pem_private_key(data, None)
        return CryptoSigner(key, SSlibKey.from_crypto(key.public_key()))

    def metadata(self) -> Files:
        """Return the fleet's public metadata, the newest of each role."""
        found: Files = {}
        newest: dict[str, int] = {}
        for path in (self._online / "metadata").iterdir():
            number, _, role = path.name.partition(".")
            if role == "root.json" or not number.isdigit():
                found[path.name] = path.read_bytes()
            else:
                newest[role] = max(newest.get(role, 0), int(number))
        for role, number in newest.items():
            name = f"{number}.{role}"
            found[name] = (self._online / "metadata" / name).read_bytes()
        return found

    def evil(self, version: str = "6.6.6", counter: int = 99) -> SlotAssignment:
        """Serve a model of one's own, and say of it what an assignment must say."""
        weights = linear(EVIL_SCALE)
        variant = a_variant(sha256_digest(weights), len(weights))
        manifest = Manifest(1, "digits", version, counter, 0, "2026-01-01T00:00:00Z", [variant])
        data = encode_manifest(manifest)
        for body in (weights, data):
            self._blobs[sha256_digest(body)] = body
        name = sha256_digest(data)
        return SlotAssignment(
            "run", new_id(), "digits", version, name, len(data), counter, policy=QUICK
        )

    def order(self, *slots: SlotAssignment, signer: str = "director", **fields: Any) -> bytes:
        """Return an envelope for the device, signed by a stolen key."""
        self.counter += 1
        now = datetime.now(UTC)
        order = Assignment(
            v=1,
            fleet=self._device.fleet,
            device=self._device.device,
            key=self._device.key,
            counter=self.counter,
            issued=format_time(now),
            expires=format_time(now + timedelta(days=3650)),
            slots={slot.model: slot for slot in slots},
        )
        body = strict_json.encode(msgspec.structs.replace(order, **fields))
        key = self.own if signer == "own" else self.keys[signer]
        return dsse.seal(body, ASSIGNMENT_TYPE, key)

    def send(self, envelope: bytes, files: Mapping[str, bytes] | None = None) -> None:
        """Publish a document as the fleet manager would, retained."""
        packed = bundle.encode(self.fresh() if files is None else files)
        document = Desired(
            v=1,
            counter=self.counter,
            ts=format_time(datetime.now(UTC)),
            assignment=base64.b64encode(envelope).decode(),
            bundle=base64.b64encode(packed).decode(),
            blobs=self._server.url,
        )
        self.say(strict_json.encode(document), retain=True)

    def say(self, payload: bytes, *, retain: bool = False) -> None:
        """Publish any bytes where the device listens."""
        topic = topics.desired(self._device.device)
        self._client.publish(topic, payload, 1, retain=retain).wait_for_publish(10)

    # What may be forged with the stolen keys; each returns all files of a repository.

    def published(self, slot: SlotAssignment, *signers: CryptoSigner) -> Files:
        """List one's own model in the publisher's role, signed by whatever keys there are."""
        files = self.metadata()
        name = _newest(files, "publisher%2Fdigits.json")
        role = Metadata.from_bytes(files.pop(name))
        role.signed.version += 1
        _list(role.signed.targets, slot)
        _sign(role, *signers)
        files[f"{role.signed.version}.publisher%2Fdigits.json"] = role.to_bytes()
        return self.reflected(files, {"publisher/digits.json": role.signed.version})

    def in_targets(self, slot: SlotAssignment, *signers: CryptoSigner) -> Files:
        """List one's own model in the top-level targets."""
        return self._retargeted(lambda signed: _list(signed.targets, slot), *signers)

    def delegated(self, *signers: CryptoSigner) -> Files:
        """Let targets delegate everything to one's own key."""
        own = self.own.public_key

        def change(signed: Any) -> None:
            roles = {
                name: DelegatedRole(name, [own.keyid], 1, True, role.paths)
                for name, role in signed.delegations.roles.items()
            }
            signed.delegations = Delegations({own.keyid: own}, roles)

        return self._retargeted(change, *signers)

    def _retargeted(self, change: Any, *signers: CryptoSigner) -> Files:
        files = self.metadata()
        targets = Metadata.from_bytes(files.pop(_newest(files, "targets.json")))
        change(targets.signed)
        targets.signed.version += 1
        _sign(targets, *signers)
        files[f"{targets.signed.version}.targets.json"] = targets.to_bytes()
        return self.reflected(files, {"targets.json": targets.signed.version})

    def rooted(self, *signers: CryptoSigner) -> Files:
        """Make a root of one's own that follows the fleet's, with one's own key for every role."""
        files = self.delegated(self.own)
        name = _newest(files, "root.json")
        root: Metadata[Root] = Metadata.from_bytes(files[name])
        root.signed.version += 1
        own = self.own.public_key
        for role in root.signed.roles.values():
            role.keyids, role.threshold = [own.keyid], 1
        root.signed.keys[own.keyid] = own
        _sign(root, *signers)
        files[f"{root.signed.version}.root.json"] = root.to_bytes()
        return files

    def fresh(self, days: int = 300) -> Files:
        """Return the true catalog, above all that was signed before, good for so much longer."""
        return self.reflected(self.metadata(), {}, days)

    def reflected(self, files: Files, versions: Mapping[str, int], days: int = 300) -> Files:
        """Sign snapshot and timestamp over such versions: their keys are stolen."""
        files = dict(files)
        self._step += 1
        snapshot = Metadata.from_bytes(files[_newest(files, "snapshot.json")])
        snapshot.signed.version += self._step
        snapshot.signed.expires += timedelta(days=days)
        for name, version in versions.items():
            snapshot.signed.meta[name] = MetaFile(version)
        _sign(snapshot, self.keys["snapshot"])
        files[f"{snapshot.signed.version}.snapshot.json"] = snapshot.to_bytes()
        timestamp = Metadata.from_bytes(files["timestamp.json"])
        timestamp.signed.version += self._step
        timestamp.signed.expires += timedelta(days=days)
        timestamp.signed.snapshot_meta = MetaFile(snapshot.signed.version)
        _sign(timestamp, self.keys["timestamp"])
        files["timestamp.json"] = timestamp.to_bytes()
        return files


def _newest(files: Files, role: str) -> str:
    numbers = [int(n.partition(".")[0]) for n in files if n.partition(".")[2] == role]
    return f"{max(numbers)}.{role}"


def _list(targets: dict[str, TargetFile], slot: SlotAssignment) -> None:
    path = target_path(slot.model, slot.version)
    hashes = {"sha256": slot.manifest.removeprefix("sha256:")}
    custom = {"release_counter": slot.release_counter, "security_floor": 0, "hardware": ["*"]}
    targets[path] = TargetFile(slot.size, hashes, path, {"custom": custom})


def _sign(metadata: Metadata[Any], *signers: CryptoSigner) -> None:
    metadata.signatures.clear()
    for signer in signers:
        metadata.sign(signer, append=True)


def borrowed(metadata: bytes, keyids: list[str]) -> bytes:
    """Put the first signature under other key ids too: a thief may write any id."""
    document = json.loads(metadata)
    first = document["signatures"][0]
    document["signatures"] = [{**deepcopy(first), "keyid": keyid} for keyid in keyids]
    return json.dumps(document).encode()

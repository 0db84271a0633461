"""A device that signs what it says, for tests of the fleet manager's ingest."""

from __future__ import annotations

from typing import Any

from cryptography.hazmat.primitives import serialization
from securesystemslib.signer import CryptoSigner

from edgefleet_cloud.devices.tables import DeviceRow
from edgefleet_shared import dsse, strict_json
from edgefleet_shared.identifiers import sha256_digest
from edgefleet_shared.messages import (
    BATCH_TYPE,
    REPORTED_TYPE,
    Batch,
    Presence,
    Reported,
    SlotReport,
    SwapReceipt,
    TelemetryWindow,
)

TS = "2026-01-31T12:00:00.000Z"


def digest(name: str) -> str:
    """Return a digest that stands for `name`; '' stays ''."""
    return sha256_digest(name.encode()) if name else ""


class SpeakingDevice:
    """One device with a key of its own."""

    def __init__(self, name: str, boot: str = "boot-1") -> None:
        self.name = name
        self.boot = boot
        self.signer = CryptoSigner.generate_ecdsa()
        public = serialization.load_pem_public_key(self.signer.public_key.keyval["public"].encode())
        self.pem = public.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ).decode()
        self.key = sha256_digest(
            public.public_bytes(
                serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )

    def row(self, **fields: Any) -> DeviceRow:
        """Return the fleet manager's row of this device, enrolled."""
        defaults = {
            "created": TS,
            "hardware": "generic-x86_64",
            "state": "enrolled",
            "public_key": self.pem,
            "key": self.key,
            "enrollment": 1,
        }
        return DeviceRow(id=self.name, **{**defaults, **fields})

    def presence(self, online: bool = True) -> bytes:
        """Return a presence message."""
        return strict_json.encode(Presence(1, online, self.boot, "0.1.0"))

    def reported(self, seq: int, **fields: Any) -> bytes:
        """Return a sealed Reported."""
        defaults = {"device": self.name, "boot": self.boot, "ts": TS, "counter": 0, "slots": {}}
        message = Reported(v=1, seq=seq, **{**defaults, **fields})
        return self.seal(strict_json.encode(message), REPORTED_TYPE)

    def batch(self, stream: str, items: dict[int, Any], **fields: Any) -> bytes:
        """Return a sealed Batch of items by sequence number."""
        defaults = {"device": self.name, "boot": self.boot, "ts": TS, "dropped": 0}
        message = Batch(
            v=1,
            stream=stream,
            seqs=list(items),
            items=[strict_json.decode(strict_json.encode(i), dict, max_bytes=99999, what="item")
                   for i in items.values()],
            **{**defaults, **fields},
        )  # fmt: skip
        return self.seal(strict_json.encode(message), BATCH_TYPE)

    def seal(self, payload: bytes, kind: str) -> bytes:
        """Return an envelope of any bytes, signed by this device."""
        return dsse.seal(payload, kind, self.signer)


def slot_report(version: str = "1.0.0", **fields: Any) -> SlotReport:
    """Return a slot that serves a version well."""
    defaults = {"deployment": "d-1", "attempt": 1, "seq": 1, "state": "succeeded"}
    return SlotReport(active=digest(version), active_version=version, **{**defaults, **fields})


def receipt(to: str, ts: str = TS, **fields: Any) -> SwapReceipt:
    """Return the receipt of a swap to a version; '' stops."""
    defaults = {
        "kind": "activate" if to else "stop",
        "slot": "digits",
        "deployment": "d-1",
        "from_digest": "",
        "from_version": "",
        "in_flight": 0,
        "failed": 0,
        "requests_during": 3,
        "ready_ms": 12,
        "p50_us_before": None,
        "p99_us_before": None,
        "p99_us_during": 900,
    }
    return SwapReceipt(ts=ts, to_digest=digest(to), to_version=to, **{**defaults, **fields})


def window(version: str = "1.0.0", **fields: Any) -> TelemetryWindow:
    """Return a telemetry window of ten answers in bucket 20."""
    defaults = {
        "start": "2026-01-31T12:00:00.000Z",
        "end": "2026-01-31T12:01:00.000Z",
        "slot": "digits",
        "requests": 10,
        "client_errors": 0,
        "server_errors": 0,
        "rejected": 0,
        "nonfinite": 0,
        "replayed": 0,
        "crashes": 0,
        "latency": {20: 10},
        "compute": {16: 10},
    }
    return TelemetryWindow(digest=digest(version), version=version, **{**defaults, **fields})

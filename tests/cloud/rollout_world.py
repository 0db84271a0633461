"""The rollouts room over a real database, real signatures, and a broker and devices in memory."""

from __future__ import annotations

import base64
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta

from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.signer import CryptoSigner
from sqlmodel import Session, select

from edgefleet_cloud.database import Database
from edgefleet_cloud.devices.service import Devices
from edgefleet_cloud.devices.tables import DeviceRow
from edgefleet_cloud.errors import NotFoundError
from edgefleet_cloud.events.feed import EventFeed
from edgefleet_cloud.events.service import EventLog
from edgefleet_cloud.events.tables import EventRow
from edgefleet_cloud.groups.service import Groups
from edgefleet_cloud.ports import Blob, Release, Transport
from edgefleet_cloud.rollouts import repository
from edgefleet_cloud.rollouts.announcer import Announcer, Settings
from edgefleet_cloud.rollouts.controller import Controller, Pace
from edgefleet_cloud.rollouts.driver import Driver
from edgefleet_cloud.rollouts.planning import Planner
from edgefleet_cloud.rollouts.reporting import Reports
from edgefleet_cloud.rollouts.schemas import NewRollout
from edgefleet_cloud.rollouts.service import Rollouts
from edgefleet_cloud.rollouts.slots import Slots
from edgefleet_cloud.rollouts.tables import DeploymentRow, RolloutRow
from edgefleet_shared import bundle, dsse, strict_json, topics
from edgefleet_shared.identifiers import sha256_digest
from edgefleet_shared.messages import (
    ASSIGNMENT_TYPE,
    Assignment,
    Desired,
    Reported,
    SlotReport,
)
from edgefleet_shared.package import (
    FileEntry,
    Manifest,
    RuntimeNeed,
    TensorSpec,
    Variant,
    encode_manifest,
)
from tests.fakes.cloud_transport import MemoryBroker, MemoryTransport


class HandClock:
    """A clock that stands still until it is turned."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 31, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def turn(self, **delta: float) -> None:
        """Let time pass, given as `timedelta` takes it."""
        self.now += timedelta(**delta)


class Shelf:
    """Published versions in memory: `ports.Releases`, and `ports.Blobs` for their manifests."""

    def __init__(self) -> None:
        self._manifests: dict[str, bytes] = {}
        self._releases: dict[tuple[str, str], Release] = {}

    def publish(self, version: str, hardware: str = "*") -> Release:
        """Publish a version of `digits` with one file of 1000 bytes."""
        tensor = TensorSpec("x", "FP32", [-1, 64])
        entry = FileEntry("model.onnx", sha256_digest(version.encode()), 1000, "onnx")
        variant = Variant(
            id="cpu",
            accelerator="cpu",
            hardware=[hardware],
            runtime=RuntimeNeed("onnxruntime"),
            files=[entry],
            inputs=[tensor],
            outputs=[tensor],
        )
        counter = len(self._releases) + 1
        data = encode_manifest(
            Manifest(
                schema=1,
                name="digits",
                version=version,
                release_counter=counter,
                security_floor=0,
                created="2026-01-31T12:00:00Z",
                variants=[variant],
            )
        )
        digest = sha256_digest(data)
        self._manifests[digest] = data
        release = Release("digits", version, digest, len(data), counter, 0, frozenset({hardware}))
        self._releases["digits", version] = release
        return release

    def find(self, session: Session, model: str, version: str) -> Release:
        try:
            return self._releases[model, version]
        except KeyError:
            raise NotFoundError(f"There is no {model} {version}.") from None

    def by_manifest(self, session: Session, manifest: str) -> Release | None:
        return next((r for r in self._releases.values() if r.manifest == manifest), None)

    def open(self, digest: str, start: int = 0, length: int | None = None):
        return nullcontext(iter([self._manifests[digest]]))

    def has(self, digest: str) -> bool:
        return digest in self._manifests

    def stat(self, digest: str) -> Blob:
        return Blob(digest, len(self._manifests[digest]))


class Trust:
    """A director with a real key, and a catalog whose files are only named."""

    def __init__(self) -> None:
        self.signer = CryptoSigner(ec.generate_private_key(ec.SECP256R1()))
        self.files = {"1.root.json": b"{}", "1.targets.json": b"{}", "1.snapshot.json": b"{}"}

    def sign(self, assignment: Assignment) -> bytes:
        return dsse.seal(strict_json.encode(assignment), ASSIGNMENT_TYPE, self.signer)

    def bundle(self) -> bytes:
        return bundle.encode(self.files)


class RolloutWorld:
    """Everything of the rollouts room, built by hand."""

    def __init__(self, database: Database, transport: Transport | None = None) -> None:
        self.database, self.clock, self.shelf, self.trust = database, HandClock(), Shelf(), Trust()
        self.broker = MemoryBroker()
        self.transport = transport or MemoryTransport(self.broker)
        if transport is None:
            self.transport.start(lambda _topic, _payload: None)
        events = self.events_log = EventLog(EventFeed(), self.clock)
        self.devices = Devices(events, clock=self.clock)
        settings = Settings("demo", lambda: "http://cloud/v1/blobs", timedelta(hours=168))
        self.announcer = Announcer(
            settings, database, self.devices, self.trust, self.trust, self.transport, events,
            self.clock,
        )  # fmt: skip
        self.woken: list[str] = []
        slots = self.slots = Slots(events, self.announcer.announce, self.clock)
        self.driver = Driver(slots, events, self.clock, lambda: {"": self.transport.pending})
        groups = Groups(events, self.devices, self.clock)
        planner = Planner(self.devices, groups, self.shelf, self.shelf)
        self.service = Rollouts(planner, slots, self.driver, self.woken.append, self.clock)
        self.reports = Reports(slots, self.shelf, self.woken.append)
        self.controller = self.another_controller()
        self._seq: dict[str, int] = {}

    def heard(self, session: Session, device: str, reported: Reported) -> None:
        """Take a device's state in, as `compose` wires it."""
        self.announcer.catch_up(session, device, reported.counter)
        self.reports.apply(session, device, reported)

    def another_controller(self) -> Controller:
        """Return a controller as another process would have it."""
        return Controller(self.database, self.driver, lambda: None, Pace(), self.clock)

    def enroll(self, *names: str, online: bool = True, hardware: str = "generic-x86_64") -> None:
        """Add devices as enrolment leaves them."""
        with self.database.write() as session:
            for name in names:
                row = DeviceRow(
                    id=name,
                    created="2026-01-31T11:00:00.000Z",
                    hardware=hardware,
                    state="enrolled",
                    key=sha256_digest(name.encode()),
                    online=online,
                    labels={"site": "berlin"},
                )
                session.add(row)

    def roll_out(self, version: str, **more) -> str:
        """Create a rollout, let the controller work, and return the rollout's id."""
        with self.database.write() as session:
            wish = NewRollout(model="digits", version=version, **more)
            rollout = self.service.create(session, wish, "token/admin").id
        self.settle()
        return rollout

    def act(self, rollout: str, verb: str) -> None:
        """Do what an operator does, and let the controller work."""
        with self.database.write() as session:
            getattr(self.service, verb)(
                session, self.service.get(session, rollout), "because", "token/admin"
            )
        self.settle()

    def settle(self) -> None:
        """Let the controller do all that is due."""
        self.controller.reconcile_all()

    def rollout(self, rollout: str) -> RolloutRow:
        """Return a rollout's row."""
        with self.database.read() as session:
            return self.service.get(session, rollout)

    def waves(self, rollout: str) -> list[str]:
        """Return the states of a rollout's waves."""
        with self.database.read() as session:
            return [wave.state for wave in repository.waves(session, rollout)]

    def states(self, rollout: str) -> dict[str, str]:
        """Return the state of each device of a rollout's waves."""
        with self.database.read() as session:
            return {row.device: row.state for row in repository.members(session, rollout)}

    def wanted(self, device: str) -> DeploymentRow:
        """Return what a device's slot should run."""
        with self.database.read() as session:
            return repository.desired(session, device)["digits"]

    def document(self, device: str) -> tuple[Desired, Assignment]:
        """Return the newest document on the broker, its signature checked."""
        self.transport.publish("f1/nobody/dn/desired", b"").result(10)  # all before it is out
        data = self.broker.retained[topics.desired(device)]
        desired = strict_json.decode(data, Desired, max_bytes=2**20, what="desired")
        payload = dsse.open_sealed(
            base64.b64decode(desired.assignment), ASSIGNMENT_TYPE, self.trust.signer.public_key
        )
        return desired, strict_json.decode(payload, Assignment, max_bytes=2**20, what="x")

    def report(
        self,
        device: str,
        state: str,
        *,
        active: str = "",
        previous: str = "",
        deployment: str = "",
        attempt: int = 1,
        seq: int = 0,
        **more,
    ) -> None:
        """Have a device report on a deployment, by default on the one it was told of last."""
        self._seq[device] = seq or self._seq.get(device, 0) + 1
        deployment = deployment or self.document(device)[1].slots["digits"].deployment
        slot = SlotReport(
            deployment=deployment,
            attempt=attempt,
            seq=self._seq[device],
            state=state,
            active=self.digest(active),
            active_version=active,
            previous=self.digest(previous),
            **more,
        )
        reported = Reported(
            v=1, device=device, boot="b", seq=1, ts="", counter=1, slots={"digits": slot}
        )
        with self.database.write() as session:
            self.reports.apply(session, device, reported)
        self.settle()

    def digest(self, version: str) -> str:
        """Return the manifest digest of a version; '' for ''."""
        if not version:
            return ""
        with self.database.read() as session:
            return self.shelf.find(session, "digits", version).manifest

    def serve(self, *devices: str, version: str) -> None:
        """Have devices run a version, the whole way."""
        self.roll_out(version, devices=list(devices))
        for device in devices:
            self.report(device, "succeeded", active=version)

    def events(self, prefix: str = "") -> list[EventRow]:
        """Return the events of a type or family, oldest first."""
        with self.database.read() as session:
            rows = session.exec(select(EventRow).order_by(EventRow.id)).all()
            return [row for row in rows if row.type.startswith(prefix)]

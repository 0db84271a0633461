"""The one place that names adapters: configuration in, the whole fleet manager out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from fastapi import FastAPI
from sqlmodel import Session

from edgefleet_cloud import migrations
from edgefleet_cloud.app import create_app
from edgefleet_cloud.audit.configuration import tell_start
from edgefleet_cloud.audit.service import HeadKeeper, Heads
from edgefleet_cloud.auth.devices import DeviceAccess
from edgefleet_cloud.auth.gate import Gate
from edgefleet_cloud.auth.limits import FailureLimit
from edgefleet_cloud.auth.oidc.setup import configured
from edgefleet_cloud.auth.service import TokenService
from edgefleet_cloud.authority.issuing import DeviceCa
from edgefleet_cloud.authority.service import Certificates
from edgefleet_cloud.authority.watch import AuthorityWatch
from edgefleet_cloud.blobs.disk import DiskBlobs
from edgefleet_cloud.blobs.service import Uploads
from edgefleet_cloud.broker import disconnect
from edgefleet_cloud.broker.disconnect import Disconnections
from edgefleet_cloud.broker.service import KEEP_S, BrokerService
from edgefleet_cloud.config import Config, Limits
from edgefleet_cloud.database import Database
from edgefleet_cloud.devices.keys import DeviceKeys
from edgefleet_cloud.devices.service import Devices
from edgefleet_cloud.enrollments.asking import Asking
from edgefleet_cloud.enrollments.renewals import Renewals
from edgefleet_cloud.enrollments.service import Addresses, Enrollments
from edgefleet_cloud.events.feed import EventFeed
from edgefleet_cloud.events.service import EventLog
from edgefleet_cloud.groups.service import Groups
from edgefleet_cloud.hub_config import IotHub
from edgefleet_cloud.idempotency import service as idempotency
from edgefleet_cloud.iothub.letters import Letters
from edgefleet_cloud.iothub.limits import tier
from edgefleet_cloud.iothub.pacing import Pacer
from edgefleet_cloud.iothub.registry import Parts as RegistryParts
from edgefleet_cloud.iothub.registry import Registry
from edgefleet_cloud.iothub.rest import HubRest
from edgefleet_cloud.iothub.status import Hubs, View
from edgefleet_cloud.iothub.sync import Needs as SyncNeeds
from edgefleet_cloud.iothub.sync import RegistrySync
from edgefleet_cloud.iothub.told import Told
from edgefleet_cloud.iothub.upstream import Needs, Upstream
from edgefleet_cloud.iothub.ways import BROKER, Moves, Ways
from edgefleet_cloud.models.service import ModelService
from edgefleet_cloud.periodic import Periodic
from edgefleet_cloud.ports import BackgroundService, Disconnector, Transport, system_clock
from edgefleet_cloud.reports.ingest import Ingest
from edgefleet_cloud.reports.service import Reports
from edgefleet_cloud.rollouts.announcer import Announcer, Settings
from edgefleet_cloud.rollouts.controller import Controller, Pace
from edgefleet_cloud.rollouts.driver import Driver
from edgefleet_cloud.rollouts.planning import Planner
from edgefleet_cloud.rollouts.reporting import Reports as DeploymentReports
from edgefleet_cloud.rollouts.service import Rollouts
from edgefleet_cloud.rollouts.slots import Slots, desired
from edgefleet_cloud.rollouts.visibility import events_within
from edgefleet_cloud.transports.iothub import IotHubTransport
from edgefleet_cloud.transports.iothub import Parts as IotHubParts
from edgefleet_cloud.transports.mqtt import MqttSettings, MqttTransport
from edgefleet_cloud.transports.routed import DisconnectorOfAll, RoutedTransport
from edgefleet_cloud.trust.expiry import ExpiryWatch
from edgefleet_cloud.trust.key_folder import KeyFolder
from edgefleet_cloud.trust.repository import MetadataFolder
from edgefleet_cloud.trust.service import Trust
from edgefleet_cloud.uplink import Uplink
from edgefleet_cloud.web import Parts
from edgefleet_shared.access import origin
from edgefleet_shared.messages import Reported

RENEW_S = 60.0
PURGE_S = 3600.0
SWEEP_S = 10.0
LOOK_S = 3.0
WATCH_S = 3600.0


class Program(NamedTuple):
    """Everything that runs: the API, and what runs beside it, in order of starting.

    `closing` ends the streams that would else stay open as long as their readers.
    """

    app: FastAPI
    background: Sequence[BackgroundService]
    database: Database
    closing: Callable[[], None]


def compose(config: Config) -> Program:
    """Build the fleet manager.

    Args:
        config: With a `listen` that is bound already, so that `api_url` is the real one.

    Raises:
        EdgeFleetError: Keys, metadata or database cannot be used.
    """
    database = open_database(config)
    feed = EventFeed()
    events = EventLog(feed, visible=events_within)
    tokens, gate = _admit(config, database, events)
    trust = Trust(MetadataFolder(config.metadata), KeyFolder(config.keys), events, system_clock)
    blobs = DiskBlobs(config.data / "blobs")
    limit = config.limits.upload_max_bytes
    uploads = Uploads(blobs, config.data / "uploads", limit, events, system_clock)
    demanded = config.intake.require_provenance
    models = ModelService(blobs, trust, events, system_clock, require_provenance=demanded)
    with database.write() as session:
        models.recover(session)
    broker = _broker(config, database, events)
    paths = _paths(config, broker, database, events)
    certificates = _certificates(config, paths.disconnector)
    devices = Devices(events, desired, revoke=certificates.revoke_device)
    groups = Groups(events, devices)
    enrollments = Enrollments(
        config.fleet, certificates, trust, devices, events,
        lambda: Addresses(config.api_url, paths.ways),
    )  # fmt: skip
    reports = Reports(devices, models)
    planner = Planner(devices, groups, models, blobs)
    steering = _steer(config, database, events, groups, planner, models, trust, paths)
    asking = Asking(database, devices, certificates, paths.transport, events)
    renewals = _renewals(config, certificates, trust, asking, steering.announcer, events)
    trust.subscribe(steering.controller.tidy)  # what an old director signed is dead: sign anew
    watch = ExpiryWatch(trust, database, events, system_clock)
    moved = Moves(paths.ways, events, _announcing(steering.announcer, asking)).heard
    ingest = Ingest(database, events, [moved, steering.heard])
    heads = Heads(config.fleet, trust, config.data / "audit", system_clock)
    background: list[BackgroundService] = [
        HeadKeeper(database, heads),
        Periodic("renewal of the timestamp", RENEW_S, trust.renew),
        Periodic("warning before expiry", WATCH_S, watch.look),
        Periodic("removal of what is old", PURGE_S, partial(_purge, database, uploads)),
        broker,
        Uplink(steering.transport, ingest, steering.announcer, database, asking.remind),
        *paths.background,
        *_at_the_broker(config, certificates, broker),
        Periodic("asking for renewals", SWEEP_S, asking.sweep),
        steering.controller,
    ]
    parts = Parts(
        database, config.limits, tokens, gate, trust, uploads, models,
        events, heads, devices, groups, enrollments, reports, ingest, steering.rollouts, asking,
        renewals, broker, steering.announcer, paths.hubs, paths.ways,
    )  # fmt: skip
    https = config.api_url.startswith("https:")
    return Program(create_app(parts, https=https), background, database, feed.close)


def _admit(config: Config, database: Database, events: EventLog) -> tuple[TokenService, Gate]:
    """Return what knows tokens, and the door that every caller comes through."""
    tokens = TokenService(system_clock, events)
    with database.write() as session:
        tell_start(session, events, config)
        tokens.import_file(session, Path(config.admin_token_file))
    here = origin(config.api_url)
    devices = DeviceAccess(config.fleet, here, DeviceKeys(database), system_clock)
    oidc = configured(config.oidc)
    limit = FailureLimit(config.limits.auth_failures, config.limits.auth_refill_s)
    return tokens, Gate(database, tokens, devices, limit, events, config.proxies, oidc)


def _certificates(config: Config, disconnector: Disconnector) -> Certificates:
    ca = DeviceCa.load(config.keys, timedelta(days=config.identity.certificate_life_days))
    return Certificates(config.fleet, ca, disconnector)


def _at_the_broker(
    config: Config, certificates: Certificates, broker: BrokerService
) -> Sequence[BackgroundService]:
    """Return what keeps the broker's certificates and revocation lists as they must be."""
    watch = AuthorityWatch(certificates.ca, config.keys, broker.keep)
    return (
        Periodic("renewal of the broker's certificates", KEEP_S, broker.keep),
        Periodic("look at the authorities", LOOK_S, watch.look),
    )


def _renewals(
    config: Config,
    certificates: Certificates,
    trust: Trust,
    asking: Asking,
    announcer: Announcer,
    events: EventLog,
) -> Renewals:
    grace = timedelta(days=config.identity.renewal_grace_days)
    return Renewals(
        config.fleet, certificates, trust, trust, asking, announcer.announce, events, grace
    )


def _announcing(announcer: Announcer, asking: Asking) -> Callable[[Session, str], None]:
    """Return what says anew, to a device that has moved, all that its old way had kept for it."""

    def say(session: Session, device: str) -> None:
        announcer.answer(session, device)
        asking.remind(session, device)

    return say


class _Steering(NamedTuple):
    """What decides, tells devices, and hears from them."""

    rollouts: Rollouts
    controller: Controller
    announcer: Announcer
    transport: Transport
    reports: DeploymentReports

    def heard(self, session: Session, device: str, reported: Reported) -> None:
        """Take a device's newest state into its deployments."""
        self.announcer.catch_up(session, device, reported.counter)
        self.reports.apply(session, device, reported)


def _steer(
    config: Config,
    database: Database,
    events: EventLog,
    groups: Groups,
    planner: Planner,
    models: ModelService,
    trust: Trust,
    paths: _Paths,
) -> _Steering:
    life = timedelta(hours=config.controller.assignment_life_h)
    settings = Settings(config.fleet, lambda: f"{config.api_url}/v1/blobs", life)
    announcer = Announcer(
        settings, database, groups.devices, trust, trust, paths.transport, events, system_clock
    )
    slots = Slots(events, announcer.announce, system_clock)
    driver = Driver(slots, events, system_clock, paths.waiting)
    pace = Pace(config.controller.interval_s, config.controller.lease_s)
    controller = Controller(database, driver, announcer.refresh, pace, system_clock)
    return _Steering(
        Rollouts(planner, slots, driver, controller.wake, system_clock),
        controller,
        announcer,
        paths.transport,
        DeploymentReports(slots, models, controller.wake),
    )


def _broker(config: Config, database: Database, events: EventLog) -> BrokerService:
    broker = BrokerService(config, partial(DeviceCa.load, config.keys), database, events)
    broker.prepare()
    return broker


class _Paths(NamedTuple):
    """The ways to devices, the one transport over all of them, and what runs beside it."""

    ways: Ways
    transport: Transport
    disconnector: Disconnector
    background: Sequence[BackgroundService]
    hubs: Hubs
    waiting: Callable[[], Mapping[str, int]]


def _paths(config: Config, broker: BrokerService, database: Database, events: EventLog) -> _Paths:
    """Build the ways that are configured; with no hub it is the broker's transport itself."""
    ways = Ways(config.iothub, (lambda: broker.public_url) if broker.wanted else None)
    transports: dict[str, Transport] = {}
    disconnectors: list[Disconnector] = []
    background: list[BackgroundService] = []
    if broker.wanted:
        mqtt = transports[BROKER] = _mqtt(broker)
        disconnections = _disconnections(config, broker, database, events, mqtt)
        disconnectors.append(disconnections)
        background.append(disconnections)
    at = {hub.name: _hub(hub, database, events) for hub in config.iothub}
    for name, made in at.items():
        transports[name] = made.transport
        disconnectors.append(made.transport)
        background.append(made.sync)
    hubs = Hubs([made.view for made in at.values()])

    def waiting() -> Mapping[str, int]:
        return {way: each.pending for way, each in transports.items()}

    if not at:
        return _Paths(ways, transports[BROKER], disconnectors[0], background, hubs, waiting)
    ways.admitted = lambda hub, device: at[hub].transport.disconnect(device)
    routed = RoutedTransport(transports, partial(ways.way_of, database))
    return _Paths(ways, routed, DisconnectorOfAll(disconnectors), background, hubs, waiting)


class _AtHub(NamedTuple):
    """What works with one hub."""

    transport: IotHubTransport
    sync: RegistrySync
    view: View


def _hub(hub: IotHub, database: Database, events: EventLog) -> _AtHub:
    pacer = Pacer(tier(hub.tier, hub.units))
    rest, letters = HubRest(hub), Letters()
    registry = Registry(RegistryParts(hub, rest, pacer, database, events), settled=letters.unpark)
    told = Told(hub.name, database, pacer)
    upstream = Upstream(hub, Needs(twins=rest, database=database, told=told, events=events))
    transport = IotHubTransport(
        IotHubParts(hub, rest, pacer, database, registry, upstream), letters
    )
    sync = RegistrySync(hub, SyncNeeds(rest, upstream, database, events, told, registry))
    return _AtHub(transport, sync, View(hub, transport, upstream))


def _disconnections(
    config: Config,
    broker: BrokerService,
    database: Database,
    events: EventLog,
    transport: MqttTransport,
) -> Disconnections:
    ca = partial(DeviceCa.load, config.keys)
    return Disconnections(
        disconnect.Parts(ca, broker.lists, broker.address, transport, database, events)
    )


def _mqtt(broker: BrokerService) -> MqttTransport:
    cert, key = broker.certificate
    return MqttTransport(
        MqttSettings(
            broker.url, ca=broker.authorities, cert=cert, key=key, mqtt5=broker.kind != "amqtt"
        )
    )


def _purge(database: Database, uploads: Uploads) -> None:
    with database.write() as session:
        uploads.purge(session)
        idempotency.purge(session, system_clock)


def api_description() -> dict[str, Any]:
    """Return the OpenAPI document; nothing is opened for it."""
    app = create_app(Parts(Database("sqlite://"), Limits()))
    return app.openapi()


def open_database(config: Config) -> Database:
    """Return the database of a configuration, its schema up to date."""
    config.data.mkdir(parents=True, exist_ok=True)
    database = Database(config.database)
    migrations.upgrade(database)
    return database

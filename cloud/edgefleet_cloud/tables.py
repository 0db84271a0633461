"""Every table of every room, so that SQLModel.metadata is whole; migrations compare against it."""

from __future__ import annotations

from sqlmodel import SQLModel

from edgefleet_cloud.audit import tables as audit
from edgefleet_cloud.auth import tables as auth
from edgefleet_cloud.authority import tables as authority
from edgefleet_cloud.blobs import tables as blobs
from edgefleet_cloud.broker import tables as broker
from edgefleet_cloud.devices import tables as devices
from edgefleet_cloud.enrollments import tables as enrollments
from edgefleet_cloud.events import tables as events
from edgefleet_cloud.groups import tables as groups
from edgefleet_cloud.idempotency import tables as idempotency
from edgefleet_cloud.iothub import event_tables as iothub_events
from edgefleet_cloud.iothub import tables as iothub
from edgefleet_cloud.models import tables as models
from edgefleet_cloud.reports import tables as reports
from edgefleet_cloud.rollouts import tables as rollouts

METADATA = SQLModel.metadata

__all__ = [
    "METADATA", "audit", "auth", "authority", "blobs", "broker", "devices", "enrollments", "events",
    "groups", "idempotency", "iothub", "iothub_events", "models", "reports", "rollouts",
]  # fmt: skip

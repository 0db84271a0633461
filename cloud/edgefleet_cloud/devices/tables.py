"""The devices' table. Times are RFC 3339 UTC text in the form of `times.format_time`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Column
from sqlmodel import Field, SQLModel

REGISTERED = "registered"
ENROLLED = "enrolled"
REVOKED = "revoked"
DECOMMISSIONED = "decommissioned"


class DeviceRow(SQLModel, table=True):
    """One device: who it is, what it was assigned, and the newest it said about itself.

    Attributes:
        revision: Grows with each change by an operator; the ETag.
        public_key: PEM of its key; '' before enrolment.
        key: Digest of the key's SPKI DER; '' before enrolment.
        previous_key: PEM of the key before the last renewal; '' if it counts no more.
        previous_until: Until when it counts; None: until its successor has been heard.
        renewal_asked: Since when the device is asked to renew, or None.
        enrollment: How many times it enrolled. A new enrolment starts its sequences anew.
        way: Where it is reached: the name of an Azure IoT Hub; '' = the MQTT broker.
        counter: Newest assignment counter that was given out for it; never shrinks.
        boot: Which start of the agent spoke last.
        reported: The newest `messages.Reported` as JSON, or None.
        reported_seq: Its sequence number; 0 if there is none.
    """

    __tablename__ = "devices"

    id: str = Field(primary_key=True)
    created: str = Field(index=True)
    revision: int = 1
    labels: dict[str, str] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    hardware: str
    state: str = Field(default=REGISTERED, index=True)
    public_key: str = ""
    key: str = ""
    previous_key: str = ""
    previous_until: str | None = None
    renewal_asked: str | None = None
    enrollment: int = 0
    way: str = ""
    counter: int = 0
    online: bool = False
    boot: str = ""
    last_seen: str | None = None
    reported: dict[str, Any] | None = Field(
        default=None, sa_column=Column(JSON(none_as_null=True), nullable=True)
    )
    reported_seq: int = 0
    reported_at: str | None = None
    agent: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))

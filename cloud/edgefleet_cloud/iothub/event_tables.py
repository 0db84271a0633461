"""How far each hub's events were read, and what its registry was found to hold.

Times are RFC 3339 UTC text in the form of `times.format_time`, but for `modified`.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column
from sqlmodel import Field, SQLModel


class IotHubPartitionRow(SQLModel, table=True):
    """One partition of a hub's events: who reads it now, and how far everything is on disk.

    Attributes:
        hub: The hub's name in cloud.toml.
        namespace: Host of the Event Hubs-compatible endpoint; another one after a failover.
        eventhub: The Event Hubs-compatible name.
        consumer_group: Ours there.
        partition: Its number, as text.
        owner: Which reader has it; '' = nobody.
        etag: Changes with each claim, so that of two that claim one loses; '' = never claimed.
        modified: When it was claimed or its claim renewed, Unix time in seconds.
        offset: Everything up to here was handled and is on disk; None = nothing yet.
        sequence: The sequence number there; None as above.
        enqueued: When the hub took that event; None as above.
    """

    __tablename__ = "iothub_partitions"

    hub: str = Field(primary_key=True)
    namespace: str = Field(primary_key=True)
    eventhub: str = Field(primary_key=True)
    consumer_group: str = Field(primary_key=True)
    partition: str = Field(primary_key=True)
    owner: str = ""
    etag: str = ""
    modified: float = 0.0
    offset: str | None = None
    sequence: int | None = Field(default=None, sa_column=Column(BigInteger, nullable=True))
    enqueued: str | None = None


class IotHubDeviceRow(SQLModel, table=True):
    """What one hub said of one device; devices that are not ours are among them.

    Attributes:
        hub: The hub's name in cloud.toml.
        device: As the hub names it.
        connection: `sequenceNumber` of its newest coming or going that was believed; '' = none.
        report: Digest of the report that was last taken from its twin there; '' = none yet.
        looked: When the registry was last read with it in it; '' = not yet.
        unknown: Whether the hub knows it and we do not.
        missing: Whether it should be there, and the hub does not know it.
    """

    __tablename__ = "iothub_devices"

    hub: str = Field(primary_key=True)
    device: str = Field(primary_key=True)
    connection: str = ""
    report: str = ""
    looked: str = ""
    unknown: bool = False
    missing: bool = False


class IotHubRow(SQLModel, table=True):
    """One hub as a whole.

    Attributes:
        name: In cloud.toml.
        namespace: Where its events were last read; '' = nowhere yet.
        eventhub: Under which name.
        owner: Which fleet manager reads its registry now; '' = none.
        until: Until when that one has it to itself; '' as above.
        synced: When its registry was last read to the end; '' = never.
        due: Whether something was missed, so that it must be read again soon.
        devices: How many it held then.
        repaired: How many reports were taken from twins then, because their events had not come.
    """

    __tablename__ = "iothubs"

    name: str = Field(primary_key=True)
    namespace: str = ""
    eventhub: str = ""
    owner: str = ""
    until: str = ""
    synced: str = ""
    due: bool = False
    devices: int = 0
    repaired: int = 0

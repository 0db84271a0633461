"""What is known of the devices at Azure IoT Hubs. Times as `times.format_time` writes them."""

from __future__ import annotations

from sqlmodel import Field, SQLModel

UNKNOWN, ENABLED, DISABLED, ABSENT = "", "enabled", "disabled", "absent"


class IotHubTwinRow(SQLModel, table=True):
    """One device at one hub: what its twin holds, and what the hub's registry was told of it.

    Unknown is never equal to anything: what may have changed without a trace is written again.

    Attributes:
        device: Whose.
        hub: The hub's name in cloud.toml.
        sha256: Digest of the document in the twin, hex; '' = none, or unknown.
        content: Digest of that document without its time; '' as above.
        renew: Digest of the word in the twin that asks to renew; '' as above.
        status: In the registry: '' = unknown, `enabled`, `disabled` or `absent`.
        changed: When this was last written.
        module: Whose twin it is: a module's of that device (IoT Edge); '' = the device's own.
    """

    __tablename__ = "iothub_twins"

    device: str = Field(primary_key=True, foreign_key="devices.id")
    hub: str = Field(primary_key=True)
    sha256: str = ""
    content: str = ""
    renew: str = ""
    status: str = UNKNOWN
    changed: str = ""
    module: str = ""

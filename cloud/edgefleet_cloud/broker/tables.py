"""Which revoked devices the broker has been rid of. Times as `times.format_time` writes them."""

from __future__ import annotations

from sqlmodel import Field, SQLModel


class DisconnectionRow(SQLModel, table=True):
    """The newest revocation of a device that the broker knows of: the journal of what is done.

    A device whose newest revocation is later than `revoked` is still to be disconnected.

    Attributes:
        device: Whose.
        revoked: Time of that revocation.
        done: When its connection, session and retained messages were gone.
    """

    __tablename__ = "disconnections"

    device: str = Field(primary_key=True)
    revoked: str
    done: str

"""The certificates' table. Times are RFC 3339 UTC text in the form of `times.format_time`."""

from __future__ import annotations

from sqlmodel import Field, SQLModel


class CertificateRow(SQLModel, table=True):
    """One certificate that a device was given.

    Attributes:
        serial: Its serial number in hexadecimal, as OpenSSL writes it.
        device: Whose it is.
        key: Digest of the key's SPKI DER.
        issuer: Digest of the key that signed it.
        bundle: Names the authorities that its device was told of with it.
        revoked: Since when it counts no more, perhaps a time to come; or None.
        reason: Why it was revoked; '' if it was not.
        pem: The certificate.
        session: Whether it is for TLS alone, of a device whose key lies on a token.
    """

    __tablename__ = "certificates"

    serial: str = Field(primary_key=True)
    device: str = Field(foreign_key="devices.id", index=True)
    key: str
    issuer: str = Field(index=True)
    bundle: str = ""
    not_before: str
    not_after: str
    revoked: str | None = None
    reason: str = ""
    pem: str = ""
    session: bool = False

"""Certificates given, remembered and revoked. The caller owns the session and its commit."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from sqlmodel import Session

from edgefleet_cloud.authority import repository
from edgefleet_cloud.authority.issuing import DeviceCa, Revoked
from edgefleet_cloud.authority.requests import describe
from edgefleet_cloud.authority.tables import CertificateRow
from edgefleet_cloud.database import after_commit
from edgefleet_cloud.ports import Clock, Disconnector, system_clock
from edgefleet_shared.times import format_time, parse_time

OVERLAP = timedelta(minutes=10)
"""How long a certificate or key counts after its successor: what it sent may still be under way."""


class Certificates:
    """Gives certificates to devices and takes them back.

    Args:
        fleet: The fleet's name.
        ca: Signs.
        disconnector: Told of a device whose certificates were revoked, once that is on disk.
        clock: Tells the time.
    """

    def __init__(
        self, fleet: str, ca: DeviceCa, disconnector: Disconnector, clock: Clock = system_clock
    ) -> None:
        self.ca = ca
        self._fleet = fleet
        self._disconnector = disconnector
        self._clock = clock

    def issue(
        self,
        session: Session,
        device_id: str,
        key: EllipticCurvePublicKey,
        *,
        for_session: bool = False,
    ) -> str:
        """Return a new certificate of a device as PEM; it is remembered by its serial number.

        Args:
            session: The transaction.
            device_id: Whose.
            key: What it certifies.
            for_session: Whether the key is for TLS alone, and not the device's.
        """
        pem = self.ca.sign(key, self._fleet, device_id, self._clock())
        certificate = x509.load_pem_x509_certificate(pem.encode())
        session.add(
            CertificateRow(
                serial=f"{certificate.serial_number:X}",
                device=device_id,
                key=describe(key).digest,
                issuer=self.ca.issuers[0].digest,
                bundle=self.ca.bundle,
                not_before=format_time(certificate.not_valid_before_utc),
                not_after=format_time(certificate.not_valid_after_utc),
                pem=pem,
                session=for_session,
            )
        )
        if for_session:
            # The one before it serves until the device has taken this one up.
            since = format_time(self._clock() + OVERLAP)
            keep = describe(key).digest
            repository.supersede(session, device_id, keep, since, sessions_only=True)
        return pem

    def revoke_device(self, session: Session, device_id: str, reason: str) -> int:
        """Revoke all certificates of a device; once that is on disk, its connection is ended.

        Returns:
            How many certificates counted until now.
        """
        found = repository.revoke(session, device_id, format_time(self._clock()), reason)
        after_commit(session, lambda: self._disconnector.disconnect(device_id))
        return found

    def last_revocation(self, session: Session, device_id: str) -> str:
        """Return when a device was last revoked, RFC 3339; '' if never."""
        rows = repository.of_device(session, device_id)
        return max(
            (row.revoked or "" for row in rows if row.reason != repository.SUPERSEDED), default=""
        )

    def supersede(self, session: Session, device_id: str, keep: str) -> None:
        """Revoke a device's certificates for other keys than the one of digest `keep`."""
        repository.supersede(session, device_id, keep, format_time(self._clock()))

    def revoked(self, session: Session) -> Sequence[Revoked]:
        """Return what a revocation list must hold: what was revoked and would still be valid."""
        rows = repository.revoked(session, format_time(self._clock()))
        return [Revoked(int(row.serial, 16), parse_time(row.revoked or "")) for row in rows]

    def current(self, session: Session, device_id: str, key: str) -> str | None:
        """Return the certificate of a device's key that a device may still use, as PEM; or None.

        That is one that has not expired, and was issued since the authorities last changed.
        """
        now, bundle = format_time(self._clock()), self.ca.bundle
        for row in repository.of_device(session, device_id):
            if (row.key, row.bundle, row.revoked) == (key, bundle, None) and row.not_after > now:
                return row.pem or None
        return None

    def newest(self, session: Session, device_id: str) -> CertificateRow | None:
        """Return the certificate that a device got last, or None."""
        return repository.newest(session, device_id)

    def of_device(self, session: Session, device_id: str) -> Sequence[CertificateRow]:
        """Return a device's certificates, newest first."""
        return repository.of_device(session, device_id)

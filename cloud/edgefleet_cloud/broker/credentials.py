"""The certificates of broker and fleet manager: issued here, renewed before they expire.

Key and certificate lie in one file (mode 0600), so that no power cut can part them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from edgefleet_cloud import durable
from edgefleet_cloud.authority.issuing import DeviceCa
from edgefleet_cloud.ports import Clock, system_clock
from edgefleet_shared.identifiers import MANAGER, PROBE

LIFE = timedelta(days=30)
RENEW_BEFORE = timedelta(days=10)
KEY_MODE = 0o600


class Credentials:
    """Files in a folder: `ca.crt`, `manager.pem`, `probe.pem`, and `server.pem` for a broker here.

    Args:
        ca: Returns the authority as it stands now.
        folder: Made if absent.
        names: Host names and addresses of the embedded broker; none: no server's certificate.
        clock: Tells the time.
    """

    def __init__(
        self,
        ca: Callable[[], DeviceCa],
        folder: Path,
        names: Sequence[str],
        clock: Clock = system_clock,
    ) -> None:
        self._ca = ca
        self._folder = folder
        self._names = names
        self._clock = clock

    @property
    def authorities(self) -> Path:
        """The certificates of all authorities that are trusted."""
        return self._folder / "ca.crt"

    @property
    def manager(self) -> Path:
        """Key and certificate with which the fleet manager connects."""
        return self._folder / "manager.pem"

    @property
    def probe(self) -> Path:
        """Key and certificate with which it asks whether the broker answers."""
        return self._folder / "probe.pem"

    @property
    def server(self) -> Path:
        """Key and certificate of the embedded broker."""
        return self._folder / "server.pem"

    def renew(self) -> bool:
        """Issue what is missing, ends soon or is of another time; return whether anything changed.

        Raises:
            UnavailableError: The authority cannot be read (code `device_ca`).
            OSError: A file cannot be written.
        """
        durable.make_folder(self._folder)
        ca = self._ca()
        bundle = ca.pem.encode()
        changed = not self.authorities.exists() or self.authorities.read_bytes() != bundle
        if changed:
            durable.write(self.authorities, bundle)
        for path, name in ((self.manager, MANAGER), (self.probe, PROBE)):
            if not self._holds(path, ca, []):
                self._write_client(ca, path, name)
                changed = True
        if self._names and not self._holds(self.server, ca, self._names):
            now = self._clock()
            write_pair(self.server, lambda key: ca.sign_server(key, self._names, now, LIFE))
            changed = True
        return changed

    def _write_client(self, ca: DeviceCa, path: Path, name: str) -> None:
        write_pair(path, lambda key: ca.sign_client(key, name, self._clock(), LIFE))

    def _holds(self, path: Path, ca: DeviceCa, names: Sequence[str]) -> bool:
        """Return whether a file's certificate is of our authorities, for `names`, and lasts."""
        try:
            found = x509.load_pem_x509_certificate(path.read_bytes())
        except (OSError, ValueError):
            return False
        now = self._clock()
        lasts = found.not_valid_before_utc <= now and now + RENEW_BEFORE < found.not_valid_after_utc
        ours = any(_issued(issuer.certificate, found) for issuer in ca.issuers)
        return lasts and ours and _names_of(found) >= set(names)


def write_pair(path: Path, sign: Callable[[ec.EllipticCurvePublicKey], str]) -> int:
    """Write a new key and its certificate into one file; return the certificate's serial number.

    Args:
        path: Replaced whole; mode 0600.
        sign: Given the public key, returns the certificate as PEM.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    pem = sign(key.public_key())
    durable.write(path, key_pem(key) + pem.encode(), KEY_MODE)
    return x509.load_pem_x509_certificate(pem.encode()).serial_number


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as unencrypted PEM, for a file of mode 0600."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _issued(authority: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except Exception:  # noqa: BLE001 - whatever is wrong with it, it is not ours
        return False
    return True


def _names_of(certificate: x509.Certificate) -> set[str]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {
        *found.get_values_for_type(x509.DNSName),
        *(str(address) for address in found.get_values_for_type(x509.IPAddress)),
    }


def normal_name(host: str) -> str:
    """Return a host as a certificate names it: an address in its one form, a name in lower case."""
    try:
        return str(ip_address(host.strip("[]")))
    except ValueError:
        return host.lower()

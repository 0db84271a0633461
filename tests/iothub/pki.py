"""Certificates for devices in tests: self-signed, or signed by a CA made here."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from azure.iot.device import X509
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat


class Pair(NamedTuple):
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        """The certificate as PEM."""
        return self.certificate.public_bytes(Encoding.PEM)

    def thumbprint(self, kind: hashes.HashAlgorithm) -> str:
        """Return its thumbprint in upper-case hex."""
        return self.certificate.fingerprint(kind).hex().upper()

    def files(self, folder: Path, *chain: Pair) -> X509:
        """Write it, its key and its CAs; return what the SDK takes."""
        cert, key = folder / "device.pem", folder / "device.key"
        cert.write_bytes(self.pem + b"".join(above.pem for above in chain))
        key.write_bytes(self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return X509(str(cert), str(key))


def make(name: str, issuer: Pair | None = None, *, ca: bool = False, days: int = 30) -> Pair:
    """Return a certificate for a common name, self-signed or signed by a CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .sign(issuer.key if issuer else key, hashes.SHA256())
    )
    return Pair(certificate, key)

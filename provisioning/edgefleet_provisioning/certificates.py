"""The device CA's certificate. Pure; its key stays on the online side and signs device keys."""

from __future__ import annotations

from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from securesystemslib.signer import CryptoSigner

CA_DAYS = 3650
BACKDATE = timedelta(hours=1)  # devices' clocks run behind


def device_ca(fleet: str, signer: CryptoSigner, now: datetime) -> bytes:
    """Return a self-signed P-256 CA certificate as PEM: ten years, no CA below it.

    Args:
        fleet: Becomes part of the common name.
        signer: The CA's key.
        now: Aware time of making.
    """
    key = load_pem_private_key(signer.private_bytes, None)
    assert isinstance(key, EllipticCurvePrivateKey), "the CA's key is made by keys.generate"
    public = key.public_key()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"{fleet} device CA")])
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, key_cert_sign=True, crl_sign=True,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(Encoding.PEM)

"""The double's own CA and its server certificate, and the TLS that its devices meet.

Python's TLS cannot take a certificate that no CA of its own has signed, and IoT Hub must: it
compares thumbprints, and its CAs are uploaded while it runs. So whatever a device presents is
let through the handshake, which proves the key alone; `credentials` judges the rest.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

_CERTIFICATE = 11  # the handshake message
_KEPT = 4096
_LIFE = timedelta(days=3650)
_BACKDATE = timedelta(days=1)


class Authority:
    """A CA in a folder: `ca.pem` for clients, `server.pem` with the key for servers.

    Args:
        folder: Made if it is not there. A CA that is in it already goes on.
        names: Host names and addresses of the server.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.ca_file = folder / "ca.pem"
        self.server_file = folder / "server.pem"
        self.ca_key_file = folder / "ca.key"
        if self.ca_key_file.exists():
            key = _load_key(self.ca_key_file)
            ca = x509.load_pem_x509_certificate(self.ca_file.read_bytes())
        else:
            key = ec.generate_private_key(ec.SECP256R1())
            name = _name("double of Azure")
            ca = _certificate(name, key.public_key(), name, key)
            _write_secret(self.ca_key_file, _pem(key))
        server_key = ec.generate_private_key(ec.SECP256R1())
        server = _certificate(
            _name("server"), server_key.public_key(), ca.subject, key, sorted({*names})
        )
        self.ca_file.write_bytes(ca.public_bytes(Encoding.PEM))
        _write_secret(self.server_file, server.public_bytes(Encoding.PEM) + _pem(server_key))

    @property
    def ca_pem(self) -> str:
        """The CA's certificate, as `server_verification_cert=` takes it."""
        return self.ca_file.read_text()

    def plain_context(self) -> ssl.SSLContext:
        """Return TLS that asks for no certificate, for REST and AMQP."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.server_file)
        return context


class DeviceTls:
    """TLS for devices: any certificate is taken, and its chain remembered.

    Args:
        authority: Whose server certificate is shown.
    """

    def __init__(self, authority: Authority) -> None:
        self.context = authority.plain_context()
        self.context.verify_mode = ssl.CERT_OPTIONAL
        self.context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        self._chains: dict[bytes, list[bytes]] = {}
        # A debugging hook of CPython's. It sees the client's certificates before they are judged.
        setattr(self.context, "_msg_callback", self._message)  # noqa: B010 - not in typeshed

    def chain(self, leaf: bytes) -> list[x509.Certificate]:
        """Return what came with a certificate (DER), itself first."""
        return [x509.load_der_x509_certificate(der) for der in self._chains.get(leaf, [leaf])]

    def _message(self, _: Any, way: str, version: Any, __: Any, kind: Any, data: bytes) -> None:
        if way != "read" or kind != _CERTIFICATE:
            return
        with suppress(ValueError, ssl.SSLError, IndexError):
            chain = certificates_of(data, tls13=version == ssl.TLSVersion.TLSv1_3)
            if chain:
                self.context.load_verify_locations(cadata=chain[0])
                if len(self._chains) >= _KEPT:
                    self._chains.pop(next(iter(self._chains)))
                self._chains[chain[0]] = chain


def certificates_of(message: bytes, *, tls13: bool) -> list[bytes]:
    """Return the certificates (DER) of a TLS handshake's Certificate message."""
    at = 4
    if tls13:
        at += 1 + message[at]  # the request's context
    at += 3
    found = []
    while at < len(message):
        size = int.from_bytes(message[at : at + 3], "big")
        at += 3
        found.append(message[at : at + size])
        at += size
        if tls13:
            at += 2 + int.from_bytes(message[at : at + 2], "big")
    return found


def _certificate(
    subject: x509.Name, public: ec.EllipticCurvePublicKey, issuer: x509.Name,
    signer: ec.EllipticCurvePrivateKey, names: list[str] | None = None,
) -> x509.Certificate:  # fmt: skip
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + _LIFE)
        .add_extension(x509.BasicConstraints(ca=names is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    if names is None:
        usage = x509.KeyUsage(
            digital_signature=False, content_commitment=False, key_encipherment=False,
            data_encipherment=False, key_agreement=False, key_cert_sign=True, crl_sign=True,
            encipher_only=False, decipher_only=False,
        )  # fmt: skip
        builder = builder.add_extension(usage, critical=True)
    else:
        alternatives = x509.SubjectAlternativeName([_alternative(name) for name in names])
        builder = builder.add_extension(alternatives, critical=False)
    return builder.sign(signer, hashes.SHA256())


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _load_key(file: Path) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key(file.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey), "made by this module"
    return key


def _write_secret(file: Path, data: bytes) -> None:
    file.touch(mode=0o600)
    file.write_bytes(data)

"""Does a broker answer, and whom does it take? A bare MQTT 3.1.1 CONNECT, nothing more."""

from __future__ import annotations

import socket
import ssl
from enum import Enum
from pathlib import Path
from typing import NamedTuple

_DISCONNECT = b"\xe0\x00"
_ALERT_S = 0.2  # in TLS 1.3 a server judges our certificate after our handshake is over


class Answer(Enum):
    """What a broker says to a CONNECT."""

    TAKEN = "taken"
    REFUSED = "refused"
    SILENT = "silent"


class Address(NamedTuple):
    """Where a broker listens."""

    host: str
    port: int


def connect(
    address: Address,
    context: ssl.SSLContext | None = None,
    client_id: str = "probe",
    *,
    timeout_s: float = 1.0,
) -> Answer:
    """Connect with a clean session and leave again.

    To a broker that binds names to certificates this takes over whatever is connected under the
    name in our certificate, and clears its session and its queue.

    Args:
        address: Where.
        context: With our certificate, for TLS.
        client_id: What we call ourselves.
        timeout_s: How long each answer may take, seconds.
    """
    try:
        link = socket.create_connection(address, timeout=timeout_s)
    except OSError:
        return Answer.SILENT
    with link:
        try:
            if context is None:
                return _speak(link, client_id)
            with context.wrap_socket(link, server_hostname=address.host) as secure:
                _let_object(secure, timeout_s)
                return _speak(secure, client_id)
        except ssl.SSLCertVerificationError:
            return Answer.SILENT  # somebody else's broker
        except (ssl.SSLError, ConnectionError):
            return Answer.REFUSED
        except OSError:
            return Answer.SILENT


def client_context(ca_pem: str, certificate: Path) -> ssl.SSLContext:
    """Return what a client needs: the authorities to trust, and a file of certificate and key.

    Raises:
        OSError: The file cannot be used.
    """
    context = ssl.create_default_context(cadata=ca_pem)
    context.load_cert_chain(certificate)
    return context


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind((host, 0))
        port: int = listener.getsockname()[1]
        return port


def _let_object(link: ssl.SSLSocket, timeout_s: float) -> None:
    """Give the server time to refuse us before we speak; its word is lost if we speak too soon."""
    link.settimeout(_ALERT_S)
    try:
        if not link.recv(1):
            raise ConnectionResetError("closed after the handshake")
    except TimeoutError:
        link.settimeout(timeout_s)


def _speak(link: socket.socket, client_id: str) -> Answer:
    link.sendall(_connect_packet(client_id))
    answer = b""
    while len(answer) < 4:
        more = link.recv(16)
        if not more:
            return Answer.REFUSED
        answer += more
    if answer[:2] != b"\x20\x02" or answer[3]:
        return Answer.REFUSED
    link.sendall(_DISCONNECT)
    return Answer.TAKEN


def _connect_packet(client_id: str) -> bytes:
    """Return CONNECT: MQTT level 4, clean session, keep-alive 10 s, client id and user name."""
    name = client_id.encode()
    named = len(name).to_bytes(2) + name
    body = b"\x00\x04MQTT\x04\x82\x00\x0a" + named + named
    assert len(body) < 16384, "a name is short"
    length = (
        bytes([len(body)]) if len(body) < 128 else bytes([len(body) % 128 | 128, len(body) // 128])
    )
    return b"\x10" + length + body

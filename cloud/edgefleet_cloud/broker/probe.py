"""Does a broker answer? A bare MQTT 3.1.1 CONNECT, nothing more."""

from __future__ import annotations

import socket

# CONNECT, protocol MQTT level 4, clean session, keep-alive 10 s, client id `probe`, user `probe`.
_CONNECT = bytes.fromhex("10180004" + b"MQTT".hex() + "0482000a0005") + b"probe\x00\x05probe"
_CONNACK_ACCEPTED = b"\x20\x02\x00\x00"
_DISCONNECT = b"\xe0\x00"


def accepts(host: str, port: int, *, timeout_s: float = 1.0) -> bool:
    """Return whether a broker accepts an MQTT CONNECT within `timeout_s` seconds."""
    try:
        with socket.create_connection((host, port), timeout=timeout_s) as link:
            link.sendall(_CONNECT)
            answer = b""
            while len(answer) < len(_CONNACK_ACCEPTED):
                more = link.recv(16)
                if not more:
                    return False
                answer += more
            link.sendall(_DISCONNECT)
    except OSError:
        return False
    return answer[:4] == _CONNACK_ACCEPTED


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind((host, 0))
        port: int = listener.getsockname()[1]
        return port

"""How the device shows its certificate, and whom it believes."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, NamedTuple


class Tls(NamedTuple):
    """Files for `mqtts://`: CA of the broker, our certificate and key."""

    ca: Path
    certificate: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """Return TLS with the files as they are now.

        Raises:
            OSError: One is missing or cannot be used.
        """
        made = ssl.create_default_context(cafile=str(self.ca))
        made.load_cert_chain(self.certificate, self.key)
        made.sslsocket_class = _Socket
        return made


class _Socket(ssl.SSLSocket):
    """Says that TLS broke in the words that paho 1.6.1 understands: others kill its thread."""

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        try:
            return super().recv(buflen, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            raise ConnectionResetError(str(error)) from error

    def send(self, data: Any, flags: int = 0) -> int:
        try:
            return super().send(data, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            raise ConnectionResetError(str(error)) from error

    def do_handshake(self, block: bool = False) -> None:
        """Close what could not shake hands; paho leaves it to the garbage collector."""
        try:
            super().do_handshake(block)
        except OSError:
            self.close()
            raise

"""systemd's readiness and watchdog protocol: datagrams to `$NOTIFY_SOCKET`; silent without it."""

from __future__ import annotations

import socket
from collections.abc import Mapping


class Notifier:
    """Tells systemd how we are.

    Args:
        environ: `NOTIFY_SOCKET` and `WATCHDOG_USEC` are read from it.

    Attributes:
        interval_s: How often `alive` should be called.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._path = environ.get("NOTIFY_SOCKET", "")
        watchdog = environ.get("WATCHDOG_USEC", "")
        self.interval_s = int(watchdog) / 2e6 if watchdog.isdigit() else 3600.0
        self._watched = watchdog.isdigit()

    def ready(self) -> None:
        """Tell that what was active serves and the fleet manager is being called."""
        self._send("READY=1")

    def alive(self) -> None:
        """Feed the watchdog."""
        if self._watched:
            self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """Tell that the end is wanted."""
        self._send("STOPPING=1")

    def _send(self, text: str) -> None:
        if not self._path:
            return
        address = "\0" + self._path[1:] if self._path.startswith("@") else self._path
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            try:
                # Never waiting: a systemd that is busy must not hold agentd up.
                sock.sendto(text.encode(), socket.MSG_DONTWAIT, address)
            except OSError:
                return  # systemd notices a silent service by itself

"""A broker that the fleet manager starts, watches and takes down with itself."""

from __future__ import annotations

import importlib.util
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple

from edgefleet_cloud import durable
from edgefleet_cloud.broker import mosquitto
from edgefleet_cloud.broker.acl import EMBEDDED_MANAGERS
from edgefleet_cloud.broker.credentials import Credentials
from edgefleet_cloud.broker.mosquitto import MtlsPaths
from edgefleet_cloud.broker.probe import Address, Answer, client_context, connect, free_port
from edgefleet_shared.errors import UnavailableError

Kind = Literal["auto", "mosquitto", "amqtt"]
LOOPBACK = "127.0.0.1"
READY_S = 20.0
STOP_S = 5.0
BACKOFF_S = (0.2, 10.0)
PORT_FILE = "port"

log = logging.getLogger(__name__)


class Tls(NamedTuple):
    """Whom the broker believes: credentials written already, and the newest revocation lists."""

    credentials: Credentials
    lists: Path


class EmbeddedBroker:
    """mosquitto if this machine has it, else amqtt, in a child process.

    Args:
        kind: Which one; `auto` prefers mosquitto.
        data: Folder for its configuration, log and persistence; made if absent.
        port: TCP port; 0 for the one it had before, at first a free one. Enrolled devices keep the
            address that they were told.
        host: Address to listen on.
        tls: For mutual TLS; None: a broker that believes everybody, on loopback only.

    Raises:
        UnavailableError: Code `broker_missing`: the one asked for is not installed.
    """

    def __init__(
        self,
        kind: Kind,
        data: Path,
        port: int = 0,
        host: str = LOOPBACK,
        tls: Tls | None = None,
    ) -> None:
        self._data, self._tls = data, tls
        port = port or _port_before(data) or free_port(LOOPBACK)
        self._listen = Address(host, port)
        path = mosquitto.executable()
        if kind == "auto":
            kind = "mosquitto" if path else "amqtt"
        self._kind = kind
        where = f"{_shown(host)}:{port}"
        if kind == "mosquitto" and path:
            self._about = f"mosquitto {mosquitto.version(path)} on {where}"
            self._command = [
                sys.executable, "-m", "edgefleet_cloud.broker.tether", str(os.getpid()),
                path, "-c", str(data / "mosquitto.conf"),
            ]  # fmt: skip
        elif kind == "amqtt" and importlib.util.find_spec("amqtt"):
            self._about = (
                f"amqtt {version('amqtt')} on {where} "
                "(pure-Python broker: fine up to a few hundred devices)"
            )
            self._command = [
                sys.executable, "-m", "edgefleet_cloud.broker.amqtt_child",
                str(os.getpid()), where, *self._amqtt_files(),
            ]  # fmt: skip
        else:
            raise _missing(kind)
        self._stopping = threading.Event()
        self._up, self._ready = threading.Event(), threading.Event()
        self._failure: UnavailableError | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None

    @property
    def kind(self) -> str:
        """Return `mosquitto` or `amqtt`."""
        return self._kind

    @property
    def url(self) -> str:
        """Return where clients on this machine connect."""
        host, port = self.address
        return f"{'mqtts' if self._tls else 'mqtt'}://{_shown(host)}:{port}"

    @property
    def address(self) -> Address:
        """Return host and port for clients on this machine."""
        return _local(self._listen)

    @property
    def pid(self) -> int | None:
        """Return the child's process id, or None while there is none."""
        child = self._child
        return child.pid if child else None

    def __str__(self) -> str:
        return f"embedded broker: {self._about}"

    def start(self) -> None:
        """Start the broker and return once it answers an MQTT CONNECT.

        Raises:
            UnavailableError: Code `broker`: it did not answer within 20 s.
        """
        self._data.mkdir(parents=True, exist_ok=True)
        if self._kind == "mosquitto":
            self._configure_mosquitto()
        # One thread starts and watches: the kernel ends the child with the thread that made it.
        self._thread = threading.Thread(target=self._watch, name="broker", daemon=True)
        self._thread.start()
        self._up.wait(READY_S + STOP_S)
        if self._failure:
            raise self._failure
        durable.write(self._data / PORT_FILE, f"{self._listen.port}\n".encode())
        log.info("%s", self)

    def reload(self) -> None:
        """Have it read its certificate and the revocation lists again, keeping connections."""
        if pid := self.pid:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGHUP)

    def restart(self) -> None:
        """Start it anew and wait for it: mosquitto reads its authorities only then.

        What is retained stays. amqtt reads them on `reload`, and would lose what is retained.
        """
        child = self._child
        if child is not None and self._kind == "mosquitto":
            self._ready.clear()
            child.terminate()
            self._ready.wait(READY_S)
        else:
            self.reload()

    def stop(self) -> None:
        """End the broker; safe to call twice."""
        self._stopping.set()
        if self._thread:
            self._thread.join(STOP_S * 2)

    def _configure_mosquitto(self) -> None:
        text = mosquitto.plain_config(self._listen.port, self._data)
        if self._tls:
            known = self._tls.credentials
            acl = self._data / "acl.txt"
            acl.write_text(mosquitto.acl(EMBEDDED_MANAGERS))
            pair = str(known.server)
            paths = MtlsPaths(
                str(known.authorities), pair, pair, str(self._tls.lists), str(acl), str(self._data)
            )
            text = mosquitto.embedded_config(paths, *self._listen)
        (self._data / "mosquitto.conf").write_text(text)

    def _amqtt_files(self) -> list[str]:
        if self._tls is None:
            return []
        known = self._tls.credentials
        return [str(known.authorities), str(known.server), str(self._tls.lists)]

    def _watch(self) -> None:
        delay = BACKOFF_S[0]
        while not self._stopping.is_set():
            began = time.monotonic()
            self._run_once()
            if self._failure or self._stopping.is_set():
                return
            if time.monotonic() - began > BACKOFF_S[1]:
                delay = BACKOFF_S[0]
            log.warning("The embedded broker ended; it is started again in %.1f s.", delay)
            self._stopping.wait(delay * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            delay = min(delay * 2, BACKOFF_S[1])

    def _run_once(self) -> None:
        with (self._data / "broker.log").open("ab") as output:
            child = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._child = child
        try:
            ready = self._wait_ready(child)
            if not ready and not self._up.is_set() and not self._stopping.is_set():
                self._failure = self._not_ready()
                return
            self._up.set()
            self._ready.set()
            while child.poll() is None and not self._stopping.wait(0.1):
                pass
        finally:
            self._up.set()
            self._child = None
            _end(child)

    def _wait_ready(self, child: subprocess.Popen[bytes]) -> bool:
        deadline = time.monotonic() + READY_S
        context = None
        if self._tls:
            known = self._tls.credentials
            context = client_context(known.authorities.read_text(), known.probe)
        while time.monotonic() < deadline and child.poll() is None:
            if connect(self.address, context) is Answer.TAKEN:
                return True
            if self._stopping.wait(0.03):
                break
        return False

    def _not_ready(self) -> UnavailableError:
        said = (self._data / "broker.log").read_text(errors="replace").strip().splitlines()
        return UnavailableError(
            f"The embedded broker ({self._about}) does not answer.",
            code="broker",
            hint=f"It said: {said[-1] if said else 'nothing'} (all of it: "
            f"{self._data / 'broker.log'}).",
        )


def _local(listen: Address) -> Address:
    """Return an address of this machine for one to listen on."""
    everywhere = {"0.0.0.0": LOOPBACK, "::": "::1"}  # noqa: S104 - not bound here
    return Address(everywhere.get(listen.host, listen.host), listen.port)


def _shown(host: str) -> str:
    """Return a host as a URL shows it."""
    return f"[{host}]" if ":" in host else host


def _port_before(data: Path) -> int | None:
    try:
        return int((data / PORT_FILE).read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UnavailableError(
            f"{data / PORT_FILE} does not hold a port.",
            code="broker",
            hint="Write the port in it that devices were told, or remove it.",
        ) from error


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(STOP_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _missing(kind: str) -> UnavailableError:
    how = {
        "mosquitto": "Install it (apt-get install mosquitto), set kind = 'amqtt'",
        "amqtt": "Install mosquitto, install amqtt (edgefleet-cloud[embedded-broker])",
    }
    return UnavailableError(
        f"The embedded broker should be {kind}, which is not installed.",
        code="broker_missing",
        hint=f"{how[kind]}, or give [broker] url in cloud.toml.",
    )

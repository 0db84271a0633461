"""The broker as the fleet manager sees it: one of its own, or somebody else's by URL."""

from __future__ import annotations

import asyncio
import logging
import shlex
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from edgefleet_cloud.authority.issuing import DeviceCa
from edgefleet_cloud.broker.credentials import Credentials, normal_name
from edgefleet_cloud.broker.embedded import LOOPBACK, EmbeddedBroker, Tls
from edgefleet_cloud.broker.probe import Address
from edgefleet_cloud.broker.revocations import LIST, Places, RevocationLists
from edgefleet_cloud.config import Config
from edgefleet_cloud.database import Database
from edgefleet_cloud.errors import NotFoundError
from edgefleet_cloud.ports import Clock, EventSink, system_clock

EXTERNAL = "external"
KEEP_S = 600.0
RELOAD_S = 30.0

log = logging.getLogger(__name__)


class BrokerService:
    """A `ports.BackgroundService`: the embedded broker if no URL is configured, and who may in.

    Args:
        settings: The configuration.
        ca: Returns the authority as it stands now.
        database: Knows what is revoked.
        events: Told of alarms.
        clock: Tells the time.

    Raises:
        UnavailableError: Code `broker_missing`: the embedded broker asked for is not installed.
    """

    def __init__(
        self,
        settings: Config,
        ca: Callable[[], DeviceCa],
        database: Database,
        events: EventSink,
        clock: Clock = system_clock,
    ) -> None:
        self._settings = settings
        self._ca = ca
        self._broker = settings.broker
        folder = settings.data / "broker"
        own = self.wanted and not self._broker.url
        secure = self._broker.tls if own else urlsplit(self._broker.url).scheme == "mqtts"
        names = _names(settings) if own else []
        self.credentials = Credentials(ca, folder, names, clock)
        copy = Path(self._broker.crl_file) if self._broker.crl_file else None
        places = Places(folder, copy, self._reload)
        self._lists = RevocationLists(ca, database, events, places, clock)
        self._secure = secure
        self._bundle = b""
        tls = Tls(self.credentials, folder / LIST) if secure else None
        self._embedded = self._embed(folder, tls) if own else None

    @property
    def wanted(self) -> bool:
        """Return whether there is a broker at all."""
        return self._broker.kind != "none"

    @property
    def lists(self) -> RevocationLists | None:
        """Return the revocation lists; None for a broker without TLS."""
        return self._lists if self._secure else None

    @property
    def url(self) -> str:
        """Return where the fleet manager connects."""
        return self._embedded.url if self._embedded else self._broker.url

    @property
    def public_url(self) -> str:
        """Return what devices are told."""
        if self._broker.public_url or not self._embedded:
            return self._broker.public_url or self.url
        if not self._broker.listen:
            return self.url
        host = urlsplit(self._settings.api_url).hostname or LOOPBACK
        shown = f"[{host}]" if ":" in host else host
        return f"{urlsplit(self.url).scheme}://{shown}:{self._embedded.address.port}"

    @property
    def kind(self) -> str:
        """Return mosquitto or amqtt, or external."""
        return self._embedded.kind if self._embedded else EXTERNAL

    @property
    def certificate(self) -> tuple[str, str]:
        """Return the PEM files of the fleet manager's certificate and key for the broker."""
        if self._broker.cert:
            return self._broker.cert, self._broker.key
        own = str(self.credentials.manager)
        return own, own

    @property
    def authorities(self) -> str:
        """Return the PEM file of the authorities whose broker the fleet manager believes."""
        return self._broker.ca or str(self.credentials.authorities)

    def bundle(self) -> bytes:
        """Return the certificates of the authorities that are trusted, PEM.

        Raises:
            UnavailableError: They cannot be read (code `device_ca`).
        """
        return self._ca().pem.encode()

    def revocation_lists(self) -> bytes:
        """Return the newest revocation lists, PEM.

        Raises:
            NotFoundError: There are none: the broker is configured without TLS.
        """
        path = self._lists.path
        if not self._secure or not path.exists():
            raise NotFoundError(
                "There are no revocation lists.",
                hint="They are written for a broker with TLS, once the fleet manager has started.",
            )
        return path.read_bytes()

    def address(self) -> Address:
        """Return host and port of the broker."""
        parts = urlsplit(self.url)
        return Address(parts.hostname or "", parts.port or (8883 if self._secure else 1883))

    def prepare(self) -> None:
        """Write certificates and revocation lists, before anything connects.

        Raises:
            UnavailableError: The authority cannot be read (code `device_ca`).
            OSError: A file cannot be written.
        """
        if self._secure:
            self.credentials.renew()
            self._bundle = self.credentials.authorities.read_bytes()
            self._lists.publish()

    def keep(self) -> None:
        """Renew what is about to expire: certificates and revocation lists."""
        if not self._secure:
            return
        try:
            if self.credentials.renew():
                self._take_up()
        finally:
            self._lists.keep()

    async def start(self) -> None:
        """Start the embedded broker; return once it answers an MQTT CONNECT.

        Raises:
            UnavailableError: Code `broker`: it does not answer.
        """
        await asyncio.to_thread(self.prepare)
        if self._embedded:
            await asyncio.to_thread(self._embedded.start)

    async def stop(self) -> None:
        """End the embedded broker."""
        if self._embedded:
            await asyncio.to_thread(self._embedded.stop)

    def facts(self) -> Mapping[str, str]:
        """Return the broker's address and kind."""
        return {"broker": self.public_url, "broker_kind": self.kind} if self.wanted else {}

    def _embed(self, folder: Path, tls: Tls | None) -> EmbeddedBroker:
        kind = self._broker.kind
        assert kind != "none", "then there is no service"
        host, port = self._broker.address() or (LOOPBACK, self._broker.port)
        return EmbeddedBroker(kind, folder, port, host, tls)

    def _take_up(self) -> None:
        if self._embedded is None:
            return
        bundle = self.credentials.authorities.read_bytes()
        if bundle == self._bundle:
            self._embedded.reload()
        else:
            # Lists of the new authority first: without one its devices would be locked out.
            self._lists.publish()
            self._embedded.restart()
        self._bundle = bundle

    def _reload(self) -> None:
        """Have whichever broker it is read the lists; a command that fails is tried next time."""
        if self._embedded:
            self._embedded.reload()
        if not self._broker.reload:
            return
        try:
            subprocess.run(
                shlex.split(self._broker.reload),
                check=True,
                capture_output=True,
                text=True,
                timeout=RELOAD_S,
                stdin=subprocess.DEVNULL,
            )
        except (OSError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", "") or ""
            log.error("broker.reload failed: %s %s", error, said.strip())  # noqa: TRY400 - told


def _names(settings: Config) -> list[str]:
    """Return under which names the embedded broker is reached."""
    given = settings.broker.address()
    listen = given[0] if given else LOOPBACK
    hosts = [LOOPBACK, "localhost", listen]
    if given:
        hosts.append(urlsplit(settings.api_url).hostname or LOOPBACK)
    hosts.append(urlsplit(settings.broker.public_url).hostname or LOOPBACK)
    everywhere = {"0.0.0.0", "::"}  # noqa: S104 - names, not bound here
    return list(dict.fromkeys(normal_name(host) for host in hosts if host not in everywhere))

"""The fleet manager's MQTT client: acknowledges a message only after its handler has committed.

MQTT 5 where the broker speaks it, else 3.1.1. Each connection is a new gmqtt client, so that an
acknowledgement that comes late can never be sent on a later connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import gmqtt
from gmqtt.mqtt.constants import MQTTv50, MQTTv311
from gmqtt.mqtt.handler import MQTTConnectError
from gmqtt.storage import PersistentStorage

from edgefleet_cloud.delivery import Delivery
from edgefleet_cloud.ports import Handler
from edgefleet_cloud.transports.outgoing import Outgoing
from edgefleet_shared import topics
from edgefleet_shared.errors import EdgeFleetError, InvalidInputError, UnavailableError

CONNECT_S = 5.0
KEEPALIVE_S = 30
# For ever (MQTT 5, section 3.1.2.11.2); broker/mosquitto.py says why no session may expire.
SESSION_S = 0xFFFF_FFFF
BACKOFF_S = (0.2, 30.0)
WINDOW = 16  # gmqtt raises OverflowError beyond what the broker takes at once
IN_HAND = 200

log = logging.getLogger(__name__)
# gmqtt narrates each lost connection several times; what matters is said here once.
logging.getLogger("gmqtt").setLevel(logging.CRITICAL)


class MqttSettings(NamedTuple):
    """Where the broker is: `mqtt://host:port` or `mqtts://...`, and PEM files for the latter."""

    url: str
    client_id: str = "fleet-manager"
    ca: str = ""
    cert: str = ""
    key: str = ""
    mqtt5: bool = True  # False: do not even try, for a broker known to drop MQTT 5


class _Client(gmqtt.Client):  # type: ignore[misc]  # gmqtt ships no types
    async def reconnect(self, delay: bool = False) -> None:
        """Leave reconnecting to `MqttTransport`, which does it with jittered back-off."""


class _Packets(PersistentStorage):  # type: ignore[misc]  # as above
    """gmqtt's store of what is in flight: the one place that learns of acknowledgements."""

    def __init__(self, outgoing: Outgoing) -> None:
        super().__init__()
        self.last = 0
        self._outgoing = outgoing

    def push_message(self, mid: int, raw_package: bytes) -> None:
        del raw_package  # `Outgoing` keeps the message itself
        self.last = mid

    def remove_message_by_mid(self, mid: int) -> None:
        self._outgoing.acknowledged(mid)


class MqttTransport:
    """`ports.Transport` over MQTT, in a thread of its own.

    Raises:
        InvalidInputError: The URL is not an MQTT URL, or a TLS file cannot be read.
    """

    def __init__(self, settings: MqttSettings) -> None:
        self._settings = settings
        self._host, self._port, self._secure = _endpoint(settings)
        self._context()  # at the start, so that whoever configured it hears of it
        self._outgoing = Outgoing()
        self._connected = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._stopping = False
        self._version = MQTTv50 if settings.mqtt5 else MQTTv311
        self._ending = threading.Event()
        # One thread: the messages of a device are handled in the order they came in.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="ingest")
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)
        self._handler: Handler | None = None

    @property
    def connected(self) -> bool:
        """Return whether messages flow now."""
        return self._connected.is_set()

    @property
    def pending(self) -> int:
        """Return how many published messages the broker does not have yet."""
        return len(self._outgoing)

    def wait_connected(self, timeout_s: float) -> bool:
        """Wait until connected and subscribed; return whether that came true in time."""
        return self._connected.wait(timeout_s)

    def start(self, handler: Handler) -> None:
        """Connect, subscribe to all upward topics, and stay connected; returns at once."""
        self._handler = handler
        self._loop = asyncio.new_event_loop()
        self._thread.start()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> Future[None]:
        """Send at QoS 1, now or when the connection is back; the future ends on PUBACK."""
        future = self._outgoing.put(topic, payload, retain=retain)
        self._poke()
        return future

    def stop(self) -> None:
        """Disconnect; a message whose handler has not ended is delivered again next time."""
        self._stopping = True
        self._ending.set()
        self._poke()
        if self._thread.is_alive():
            self._thread.join(CONNECT_S * 2)
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _poke(self) -> None:
        if self._loop is None:
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody to wake
            self._loop.call_soon_threadsafe(self._wake.set)

    def _run(self) -> None:
        assert self._loop is not None
        try:
            self._loop.run_until_complete(self._stay_connected())
        finally:
            self._loop.close()

    async def _stay_connected(self) -> None:
        attempt = 0
        while not self._stopping:
            began = time.monotonic()
            try:
                await self._session()
            except (OSError, TimeoutError, MQTTConnectError, EdgeFleetError) as error:
                log.warning("MQTT broker %s: %s", self._settings.url, error or repr(error))
            finally:
                self._connected.clear()
                self._outgoing.connection_lost()
            attempt = 0 if time.monotonic() - began > BACKOFF_S[1] else attempt + 1
            delay = random.uniform(0, min(BACKOFF_S[1], BACKOFF_S[0] * 2**attempt))  # noqa: S311 - jitter
            deadline = time.monotonic() + delay
            while not self._stopping and time.monotonic() < deadline:
                await self._sleep(deadline - time.monotonic())

    async def _sleep(self, seconds: float) -> None:
        self._wake.clear()
        if self._stopping:
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), seconds)

    def _context(self) -> ssl.SSLContext | None:
        """Return TLS with the files as they are now: they are renewed while we run."""
        return _tls(self._settings) if self._secure else None

    async def _session(self) -> None:
        """Connect, subscribe, and publish until the connection is lost or we stop."""
        context = self._context()
        link = _Link(self)
        try:
            await link.open(self._host, self._port, context, self._version)
        except UnavailableError:
            # amqtt and other 3.1.1 brokers drop an MQTT 5 CONNECT without a word.
            if self._settings.mqtt5:
                self._version = MQTTv311 if self._version == MQTTv50 else MQTTv50
            await link.close()
            raise
        try:
            await link.subscribe(topics.all_up())
            self._connected.set()
            log.info("MQTT broker %s: connected", self._settings.url)
            while not self._stopping and not link.lost.is_set():
                self._wake.clear()
                self._pump(link)
                await self._wake.wait()
        finally:
            await link.close()

    def _pump(self, link: _Link) -> None:
        while not link.lost.is_set() and self._outgoing.in_flight < WINDOW:
            item = self._outgoing.take()
            if item is None:
                return
            try:
                packet = link.publish(item.topic, item.payload, retain=item.retain)
            except OverflowError:
                self._outgoing.give_back(item)
                return
            self._outgoing.sent(packet, item)

    async def handle(self, topic: str, payload: bytes) -> bool:
        """Hand a message to the worker; return whether it may be acknowledged."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._worker, self._handle, topic, payload)
        except RuntimeError:  # the worker is shut down
            return False

    def _handle(self, topic: str, payload: bytes) -> bool:
        """Try until it works: some brokers deliver again, some forget what they have sent once."""
        assert self._handler is not None
        delivery = Delivery(topic, partial(self._handler, topic, payload))
        while not self._ending.is_set():
            if delivery.once():
                return True
            self._ending.wait(delivery.pause_s)
        return False


class _Link:
    """One connection to the broker."""

    def __init__(self, transport: MqttTransport) -> None:
        settings = transport._settings  # noqa: SLF001 - one part in two classes
        self.lost = asyncio.Event()
        self._closed = asyncio.Event()
        self._granted: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._transport = transport
        self._packets = _Packets(transport._outgoing)  # noqa: SLF001
        self._client = _Client(
            settings.client_id,
            clean_session=False,
            optimistic_acknowledgement=False,
            persistent_storage=self._packets,
            session_expiry_interval=SESSION_S,
            receive_maximum=IN_HAND,
        )
        self._client.set_auth_credentials(settings.client_id)
        self._client.on_message = self._on_message
        self._client.on_disconnect = self._on_disconnect
        self._client.on_subscribe = self._on_subscribe

    async def open(self, host: str, port: int, tls: ssl.SSLContext | None, version: int) -> None:
        """Connect; raises UnavailableError if the broker closed before it answered."""
        connecting = asyncio.ensure_future(
            self._client.connect(
                host, port, ssl=tls or False, keepalive=KEEPALIVE_S, version=version
            )
        )
        losing = asyncio.ensure_future(self.lost.wait())
        try:
            await asyncio.wait(
                {connecting, losing}, timeout=CONNECT_S, return_when=asyncio.FIRST_COMPLETED
            )
            if connecting.done():
                connecting.result()
            else:
                what = "closed the connection" if losing.done() else "did not answer"
                raise UnavailableError(f"The broker {what} on CONNECT.", code="broker")
        finally:
            for task in (connecting, losing):
                task.cancel()
            await asyncio.gather(connecting, losing, return_exceptions=True)

    async def subscribe(self, pattern: str) -> None:
        """Subscribe at QoS 1; raises UnavailableError if the broker refuses."""
        self._client.subscribe(pattern, qos=1)
        granted = await asyncio.wait_for(self._granted, CONNECT_S)
        if granted != 1:
            raise UnavailableError(
                f"The broker refuses the subscription to {pattern}.",
                code="broker",
                hint="Give the fleet manager's identity readwrite access in the broker's ACL.",
            )

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> int:
        """Send at QoS 1 and return the packet id."""
        self._client.publish(topic, payload, qos=1, retain=retain)
        return self._packets.last

    async def close(self) -> None:
        """Disconnect; acknowledgements that come later go nowhere."""
        self.lost.set()
        with contextlib.suppress(OSError, AttributeError, TimeoutError):
            await asyncio.wait_for(self._client.disconnect(), 2.0)
        self._closed.set()
        await asyncio.sleep(0)

    async def _on_message(
        self, _client: Any, topic: str, payload: bytes, _qos: int, _properties: Any
    ) -> int:
        taken = not self.lost.is_set() and await self._transport.handle(topic, bytes(payload))
        if not taken:
            await self._closed.wait()
        return 0

    def _on_disconnect(self, *_args: Any) -> None:
        self.lost.set()
        self._transport._wake.set()  # noqa: SLF001 - one part in two classes

    def _on_subscribe(
        self, _client: Any, _mid: int, granted: tuple[int, ...], _properties: Any
    ) -> None:
        if not self._granted.done():
            self._granted.set_result(granted[0] if granted else 128)


def _endpoint(settings: MqttSettings) -> tuple[str, int, bool]:
    parts = urlsplit(settings.url)
    if parts.scheme not in {"mqtt", "mqtts"} or not parts.hostname:
        raise InvalidInputError(
            f"{settings.url!r} is not a broker's URL.",
            code="broker_url",
            hint="Write mqtt://host:1883 or mqtts://host:8883.",
        )
    secure = parts.scheme == "mqtts"
    return parts.hostname, parts.port or (8883 if secure else 1883), secure


def _tls(settings: MqttSettings) -> ssl.SSLContext:
    for path in filter(None, (settings.ca, settings.cert, settings.key)):
        if not Path(path).is_file():
            raise InvalidInputError(f"The broker's TLS file {path} is missing.", code="broker_tls")
    try:
        context = ssl.create_default_context(cafile=settings.ca or None)
        if settings.cert:
            context.load_cert_chain(settings.cert, settings.key or None)
    except OSError as error:  # ssl.SSLError is one
        raise InvalidInputError(
            f"The TLS files for the broker cannot be used: {error}.", code="broker_tls"
        ) from error
    return context

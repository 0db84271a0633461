"""MQTT through paho, 1.6.1 or 2.x: MQTT 5 where the broker speaks it, else 3.1.1, QoS 1 throughout.

Each connection has a client of its own, so that nothing of a broken one lingers: what it had not
handed over is told by `done(False)` and published again by who asked.
"""

from __future__ import annotations

import contextlib
import random
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edgefleet_agent.ports import TransportEvents
from edgefleet_agent.tls import Tls
from edgefleet_shared import strict_json, topics
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.messages import Get, Presence

# mosquitto 2.0's list of sessions that expire gets corrupt when one is taken over or thrown out
# (eclipse-mosquitto/mosquitto#3341), which ends the broker: none expires, revoking ends them.
SESSION_S = 0xFFFF_FFFF  # for ever: MQTT 5, section 3.1.2.11.2
CONNECT_S = 20.0
WELCOME_5_S = 2.0
"""Some brokers meet MQTT 5 with silence; 3.1.1 is then tried, and given all the time it needs."""
BACKOFF_MIN_S = 1.0
STEADY_S = 30.0
"""A connection that broke sooner was no success: whoever is kicked again and again slows down."""
GOODBYE_S = 2.0
_ALERT = "_ALERT_"  # in every name that OpenSSL has for what the other side said of us
WRONG_PROTOCOL = {1, 132}  # CONNACK: MQTT 3.1.1's and MQTT 5's word for it

Done = Callable[[bool], None]


class MqttTransport:
    """The transport port over MQTT.

    Args:
        url: `mqtt://host[:port]` or `mqtts://host[:port]`.
        device: Client id, user name and topic.
        boot: This start of the agent.
        version: The agent's version, for presence.
        tls: Needed for `mqtts://`.
        keepalive_s: Longest silence.
        backoff_max_s: Longest wait between two tries.

    Raises:
        InvalidInputError: The url is of another kind.
    """

    def __init__(
        self,
        url: str,
        device: str,
        boot: str,
        version: str,
        tls: Tls | None = None,
        keepalive_s: int = 60,
        backoff_max_s: float = 300.0,
    ) -> None:
        self._secure, self._host, self._port = _parse(url)
        self._device, self._boot, self._version, self._tls = device, boot, version, tls
        self._keepalive_s, self._backoff_max_s = keepalive_s, backoff_max_s
        self._protocol = paho.MQTTv5
        self._link: _Link | None = None
        self._stop = threading.Event()
        self._again = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)
        self._events: TransportEvents

    def start(self, events: TransportEvents) -> None:
        """Connect, and stay connected until `stop`."""
        self._events = events
        self._thread.start()

    def request_desired(self, have: int) -> None:
        """Ask for the desired document."""
        self._publish(topics.get(self._device), strict_json.encode(Get(1, have)), _nobody)

    def publish_reported(self, sealed: bytes, done: Done) -> None:
        """Publish the reported document, retained."""
        self._publish(topics.reported(self._device), sealed, done, retain=True)

    def publish_batch(self, stream: str, sealed: bytes, done: Done) -> None:
        """Publish a batch of one stream."""
        self._publish(topics.stream(self._device, stream), sealed, done)

    def renewed(self) -> None:
        """Connect anew, with the key and the certificates as they lie there now."""
        self._again.set()
        if link := self._link:
            link.leave("our certificate is a new one")

    def stop(self) -> None:
        """Publish that we are gone, and disconnect."""
        self._stop.set()
        self._again.set()
        if link := self._link:
            gone = threading.Event()
            link.publish(
                topics.presence(self._device), self._presence(online=False), lambda _: gone.set(),
                retain=True,
            )  # fmt: skip
            gone.wait(GOODBYE_S)
            link.close()
        if self._thread.is_alive():
            self._thread.join(CONNECT_S)

    def _presence(self, *, online: bool) -> bytes:
        return strict_json.encode(Presence(1, online, self._boot, self._version))

    def _publish(self, topic: str, payload: bytes, done: Done, *, retain: bool = False) -> None:
        link = self._link
        if link is None:
            done(False)
        else:
            link.publish(topic, payload, done, retain=retain)

    def _run(self) -> None:
        delay = BACKOFF_MIN_S
        while not self._stop.is_set():
            began = time.monotonic()
            link = self._attempt()
            if self._stop.is_set():
                return
            if link.distrust:
                self._events.on_refused(link.distrust)
            self._events.on_disconnected(link.reason)
            if not link.welcomed and link.spoke and self._other_protocol(link):
                continue
            if time.monotonic() - began > STEADY_S and link.welcomed:
                delay = BACKOFF_MIN_S
            self._again.wait(random.uniform(delay / 2, delay))  # noqa: S311 - jitter, no secret
            self._again.clear()
            delay = min(2 * delay, self._backoff_max_s)

    def _attempt(self) -> _Link:
        """Connect once and stay until it breaks; return the link, which knows how it ended."""
        link = _Link(self._protocol, self._on_message)
        try:
            client = self._client()
        except (OSError, ValueError) as error:
            # Key and certificate of different times, as power may leave them: renewal mends it.
            link.reason = link.distrust = f"our certificate or key cannot be used: {error}"
            return link
        link.take(client)
        if self._connect(link):
            link.welcomed = True
            link.broken.wait()
            self._link = None
        elif self._secure and self._protocol == paho.MQTTv311 and link.silent:
            # Not every broker manages to say why it ends a handshake; 3.1.1 it would have answered.
            link.distrust = f"{link.reason}; it may not take our certificate"
        link.close()
        return link

    def _connect(self, link: _Link) -> bool:
        """Connect, subscribe and say that we are here; return whether the broker took it."""
        if not link.open(self._host, self._port, self._keepalive_s, topics.down(self._device)):
            return False
        link.publish(
            topics.presence(self._device), self._presence(online=True), _nobody, retain=True
        )
        self._link = link
        if self._stop.is_set():
            return False
        self._events.on_connected()
        return True

    def _other_protocol(self, link: _Link) -> bool:
        """Change between MQTT 5 and 3.1.1; return whether to try again at once."""
        was = self._protocol
        if was == paho.MQTTv5 and (link.refusal in WRONG_PROTOCOL or link.refusal is None):
            self._protocol = paho.MQTTv311
            return True
        self._protocol = paho.MQTTv5
        return False

    def _client(self) -> Any:
        version = getattr(paho, "CallbackAPIVersion", None)
        given: dict[str, Any] = {
            "client_id": self._device,
            "protocol": self._protocol,
            "reconnect_on_failure": False,
        }
        if self._protocol == paho.MQTTv311:
            given["clean_session"] = False
        client = paho.Client(version.VERSION2, **given) if version else paho.Client(**given)
        client.username_pw_set(self._device)
        client.will_set(
            topics.presence(self._device), self._presence(online=False), qos=1, retain=True
        )
        if self._secure:
            assert self._tls is not None
            client.tls_set_context(self._tls.context())
        return client

    def _on_message(self, topic: str, payload: bytes) -> None:
        if topic == topics.desired(self._device):
            self._events.on_desired(payload)
        elif topic == topics.renew(self._device) and payload:
            self._events.on_renew(payload)


class _Link:
    """One connection: a paho client, what it still owes, and how it ended."""

    def __init__(self, protocol: int, on_message: Callable[[str, bytes], None]) -> None:
        self._protocol, self._on_message = protocol, on_message
        self._client: Any = None
        self._lock = threading.Lock()
        self._owed: dict[int, Done] = {}
        self._early: dict[int, bool] = {}
        self._closed = False
        self._welcome = threading.Event()
        self._subscribed = threading.Event()
        self.broken = threading.Event()
        self.reason = ""
        self.refusal: int | None = None
        self.distrust = ""
        self.spoke = self.welcomed = False

    def take(self, client: Any) -> None:
        """Connect by this client, whose callbacks are ours from now on."""
        self._client = client
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.on_log = self._on_log
        client.on_message = lambda _c, _u, m: self._on_message(m.topic, m.payload)

    def open(self, host: str, port: int, keepalive_s: int, filter_: str) -> bool:
        """Connect and subscribe; return whether both were granted in time."""
        given: dict[str, Any] = {"keepalive": keepalive_s}
        if self._protocol == paho.MQTTv5:
            given["clean_start"] = False
            given["properties"] = _session()
        try:
            self._client.connect(host, port, **given)
        except (OSError, ValueError) as error:
            self.reason = f"{host}:{port}: {error}"
            if isinstance(error, ssl.SSLCertVerificationError) or _ALERT in str(error):
                self.distrust = self.reason
            return False
        self.spoke = True
        self._client.loop_start()
        patience = WELCOME_5_S if self._protocol == paho.MQTTv5 else CONNECT_S
        if not self._wait(self._welcome, patience) or self.refusal:
            self.reason = self.reason or "the broker does not answer"
            return False
        self._client.subscribe(filter_, qos=1)
        if not self._wait(self._subscribed, CONNECT_S):
            self.reason = self.reason or "the broker does not grant the subscription"
            return False
        return True

    @property
    def silent(self) -> bool:
        """Whether the other side ended the connection without a word on our CONNECT."""
        return self.spoke and self.refusal is None and self.broken.is_set() and not self.distrust

    def publish(self, topic: str, payload: bytes, done: Done, *, retain: bool) -> None:
        """Publish with QoS 1; `done` tells whether the broker holds it."""
        held: bool | None = False
        if not self._closed:
            # Never under our lock: paho calls back under a lock of its own.
            info = self._client.publish(topic, payload, qos=1, retain=retain)
            with self._lock:
                if not self._closed and info.rc == paho.MQTT_ERR_SUCCESS:
                    held = self._early.pop(info.mid, None)
                    if held is None:
                        self._owed[info.mid] = done
        if held is not None:
            done(held)

    def leave(self, why: str) -> None:
        """End the connection as if it had broken."""
        self.reason = why
        self.broken.set()

    def close(self) -> None:
        """Disconnect and tell everyone who waits that it was not held."""
        with self._lock:
            self._closed = True
            owed, self._owed = list(self._owed.values()), {}
        with contextlib.suppress(OSError, ValueError):
            self._client.disconnect()
        self._client.loop_stop()
        self.broken.set()
        for done in owed:
            done(False)

    def _wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait for an event, or for the connection to break."""
        return event.wait(seconds) and not self.broken.is_set()

    def _on_connect(self, _c: Any, _u: Any, _flags: Any, rc: Any, _p: Any = None) -> None:
        self.refusal = _code(rc)
        if self.refusal:
            self.reason = f"the broker refuses: {rc}"
        self._welcome.set()

    def _on_disconnect(self, _c: Any, _u: Any, *rest: Any) -> None:
        # paho 1.x: (rc) or (rc, properties); 2.x: (flags, rc, properties)
        rc = rest[0] if len(rest) < 3 else rest[1]
        self.reason = self.reason or f"the connection broke: {rc}"
        self.broken.set()
        self._welcome.set()
        self._subscribed.set()

    def _on_log(self, _c: Any, _u: Any, _level: Any, text: str) -> None:
        # In TLS 1.3 a refused certificate shows at the first read only, and paho tells the log of
        # it and nobody else.
        if _ALERT in text:
            self.distrust = self.reason = f"the broker refuses our certificate: {text}"

    def _on_subscribe(self, _c: Any, _u: Any, _mid: int, granted: Any, *_: Any) -> None:
        if all(_code(code) < 128 for code in granted):
            self._subscribed.set()

    def _on_publish(self, _c: Any, _u: Any, mid: int, *rest: Any) -> None:
        held = not rest or _code(rest[0]) < 128
        with self._lock:
            done = self._owed.pop(mid, None)
            if done is None:
                self._early[mid] = held  # publish() has not noted the number yet
        if done:
            done(held)


def _session() -> Any:
    new: Any = Properties  # paho carries no annotations here
    properties = new(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = SESSION_S
    return properties


def _code(rc: Any) -> int:
    return rc if isinstance(rc, int) else int(rc.value)


def _nobody(_held: bool) -> None:
    """For what is published anew on each connection anyway."""


def _parse(url: str) -> tuple[bool, str, int]:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in {"mqtt", "mqtts"} or not parts.hostname or port == -1:
        raise InvalidInputError(
            f"{url!r} is no address of an MQTT broker.",
            code="configuration",
            hint="Use mqtt://host:1883 or mqtts://host:8883.",
        )
    secure = parts.scheme == "mqtts"
    return secure, parts.hostname, port or (8883 if secure else 1883)

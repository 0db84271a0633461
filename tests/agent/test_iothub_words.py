"""What the agent says to an Azure IoT Hub, and when: all of it that needs no SDK."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading

import pytest

from edgefleet_agent.config import Config, IotHub, Transport
from edgefleet_agent.identity import TransportInfo
from edgefleet_agent.transports.iothub import speech
from edgefleet_agent.transports.iothub.address import GLOBAL_DPS, Address, parse, parse_proxy
from edgefleet_agent.transports.iothub.fetching import Fetching
from edgefleet_agent.transports.iothub.pacing import Reports
from edgefleet_agent.ways import way_of
from edgefleet_shared import strict_json, twin
from edgefleet_shared.errors import InvalidInputError, UnavailableError
from edgefleet_shared.messages import Reported, SlotReport
from tests.agent.world import until

WHO = speech.Who("cam-1", "boot-1", "9")
MQTT = TransportInfo("mqtt", "mqtts://broker:8883")
HUB = TransportInfo("iothub", "dps://0ne00112233")


def envelope(*slots: str) -> bytes:
    """Return an envelope with a report of these slots."""
    each = SlotReport("d-1", 1, 1, "idle", "sha256:a", "1.0.0")
    reported = Reported(
        1, "cam-1", "boot-1", 7, "2026-01-01T00:00:00Z", 3, dict.fromkeys(slots, each)
    )
    return json.dumps({"payload": base64.b64encode(strict_json.encode(reported)).decode()}).encode()


@pytest.mark.parametrize(
    ("url", "means"),
    [
        ("iothub://fleet.azure-devices.net", Address("fleet.azure-devices.net")),
        ("dps://0ne00112233", Address(GLOBAL_DPS, "0ne00112233")),
        ("dps://127.3.0.1/0ne00112233", Address("127.3.0.1", "0ne00112233")),
    ],
)
def test_an_address_names_a_hub_or_the_service_that_assigns_one(url, means):
    """Straight, by the global provisioning service, or by another one."""
    assert parse(url) == means


@pytest.mark.parametrize(
    "url",
    ["iothub://", "iothub://h/x", "iothub://h:8883", "dps://", "dps://a/b/c", "mqtts://h", "h"],
)
def test_an_address_that_is_none_is_refused_with_the_forms_that_are(url):
    """Whoever mistypes it is told how it looks."""
    with pytest.raises(InvalidInputError, match="no address") as caught:
        parse(url)
    assert "dps://ID_SCOPE" in caught.value.hint


def test_a_proxy_is_read_and_its_password_never_repeated():
    """HTTP and SOCKS with their usual ports; what is none is refused without naming it."""
    assert parse_proxy("") is None
    assert parse_proxy("http://p") == ("HTTP", "p", 8080, None, None)
    assert parse_proxy("socks5://u:w@p:9") == ("SOCKS5", "p", 9, "u", "w")
    for bad in ("ftp://u:secret@p", "socks5://u:secret@:9", "http://u:secret@p:x"):
        with pytest.raises(InvalidInputError) as caught:
            parse_proxy(bad)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("configured", "enrolled", "way"),
    [
        (Transport(), MQTT, MQTT),
        (Transport(), HUB, HUB),
        (Transport(url="iothub://h"), MQTT, TransportInfo("iothub", "iothub://h")),
        (Transport(kind="mqtt", url="iothub://h"), MQTT, MQTT),
        (Transport(kind="iothub", url="iothub://h"), MQTT, TransportInfo("iothub", "iothub://h")),
        (Transport(kind="iothub", url="mqtts://b"), HUB, HUB),
    ],
)
def test_the_kind_alone_moves_a_device_between_transports(configured, enrolled, way):
    """An address counts for its own kind, so both may be known and one be taken."""
    assert way_of(Config(transport=configured), enrolled)[:2] == (way.kind, way.url)


@pytest.mark.parametrize(
    ("configured", "enrolled", "says"),
    [
        (Transport(kind="iothub"), MQTT, "Nothing says where the iothub"),
        (Transport(kind="mqtt"), HUB, "Nothing says where the mqtt"),
        (Transport(url="http://h"), MQTT, "no address of a transport"),
        (Transport(), TransportInfo("pigeon", "pigeon://h"), "knows no transport 'pigeon'"),
    ],
)
def test_a_transport_without_an_address_is_said_before_anything_starts(configured, enrolled, says):
    """With the key of the configuration that mends it."""
    with pytest.raises(InvalidInputError, match=says) as caught:
        way_of(Config(transport=configured), enrolled)
    assert "transport.url" in caught.value.hint or "mqtts://HOST" in caught.value.hint


def test_a_report_takes_slots_that_are_gone_out_of_the_twin():
    """The patch holds the envelope whole, the summary of its slots, and null for former ones."""
    sealed = envelope("cam", "mic")
    patch = speech.report_patch(sealed, {"cam", "old"})
    assert twin.read_report(patch).payload == sealed
    section = patch[twin.SECTION]
    assert section["counter"] == 3
    assert section["slots"]["old"] is None
    assert section["slots"]["mic"] == {"state": "idle", "version": "1.0.0"}


def test_a_report_that_fits_no_twin_is_no_patch():
    """It goes as a message; one that is not to be read has no summary."""
    assert speech.report_patch(b"{" + b"x" * twin.INLINE_MAX, ()) is None
    assert set(speech.report_patch(b'{"payload":"e30="}', {"old"})[twin.SECTION]) == {"report"}


def test_direct_methods_ping_report_renew_and_nothing_else():
    """Each does what it says; an unknown one, and one without sense, are told so by the status."""
    asked, reports = [], [True, False]

    def call(name: str, payload: object = None) -> speech.Answer:
        return speech.answer(name, payload, WHO, report=reports.pop, renew=asked.append)

    assert call("ping") == (200, {"device": "cam-1", "boot": "boot-1", "agent": "9"})
    assert call("report").status == 404
    assert call("report").status == 200
    assert call("renew", {"v": 1, "key": "sha256:a"}).status == 200
    assert json.loads(asked[0]) == {"v": 1, "key": "sha256:a"}
    assert call("renew", "now").status == 400
    assert call("format-disk").status == 404


class Watch:
    """A clock that a test moves, and a jitter that is always the longest."""

    def __init__(self) -> None:
        self.now = 100.0
        self.told: list[tuple[str, bool]] = []
        self.reports = Reports(1.0, 8.0, lambda: self.now, lambda _low, high: high)

    def put(self, name: str) -> None:
        self.reports.put(name.encode(), lambda held: self.told.append((name, held)))

    def tell(self, held: bool, dones) -> None:
        for done in dones:
            done(held)


def test_only_the_newest_report_waits_and_the_others_share_its_fate():
    """One goes at once; of three that come meanwhile the last goes a second later, for all."""
    watch = Watch()
    assert watch.reports.wait_s() is None
    watch.put("a")
    assert watch.reports.wait_s() == 0
    assert watch.reports.take() == b"a"
    for name in "bcd":
        watch.put(name)
    watch.tell(True, watch.reports.held())
    assert watch.told == [("a", True)]
    assert watch.reports.wait_s() == 1.0
    watch.now += 1
    assert watch.reports.take() == b"d"
    watch.tell(True, watch.reports.held())
    assert watch.told[1:] == [("b", True), ("c", True), ("d", True)]


def test_a_throttled_report_waits_longer_each_time_and_gives_way_to_a_newer_one():
    """Nobody is told anything meanwhile; what is taken at last is the newest, for both."""
    watch = Watch()
    watch.put("a")
    for expected in (1.0, 2.0, 4.0, 8.0, 8.0):
        assert watch.reports.take() == b"a"
        watch.reports.refused()
        assert watch.reports.wait_s() == expected
        watch.now += expected
    watch.reports.take()
    watch.put("b")
    watch.reports.refused()
    assert watch.reports.take() == b"b"
    assert not watch.told
    watch.tell(True, watch.reports.held())
    assert watch.told == [("a", True), ("b", True)]
    watch.put("c")
    assert watch.reports.wait_s() == 1.0, "all is well again"


def test_a_broken_connection_leaves_nobody_waiting():
    """What was under way and what waited are both told, once."""
    watch = Watch()
    watch.put("a")
    watch.reports.take()
    watch.put("b")
    watch.tell(False, watch.reports.drop())
    assert watch.told == [("a", False), ("b", False)]
    assert watch.reports.wait_s() is None
    assert not watch.reports.drop()


def test_what_a_twin_points_to_is_fetched_until_it_is_there():
    """Two failures and then the document; a pointer that is seen again meanwhile asks no more."""
    answers, asked, arrived = [None, None, b"document"], [], []

    def fetch() -> bytes:
        asked.append(None)
        found = answers.pop(0)
        if found is None:
            raise UnavailableError("away")
        return found

    fetching = Fetching(fetch, arrived.append, 0.02)
    for _ in range(3):
        fetching.want("a" * 64)
    until(lambda: arrived == [b"document"], "fetched")
    fetching.want("a" * 64)
    assert len(asked) == 3
    fetching.stop()


def test_a_newer_document_ends_the_fetching_of_an_older_one():
    """What is still under way then is not handed over: it would be older than what is there."""
    begun, go, arrived = threading.Event(), threading.Event(), []

    def fetch() -> bytes:
        begun.set()
        assert go.wait(10)
        return b"old"

    fetching = Fetching(fetch, arrived.append, 0.02)
    fetching.want("a" * 64)
    assert begun.wait(10)
    fetching.forget()
    go.set()
    until(lambda: not any(t.name == "iothub-fetch" for t in threading.enumerate()), "ended")
    assert not arrived


def test_the_defaults_of_the_section_suit_a_device_of_the_fleet():
    """The fleet's certificate, straight, one report a second."""
    options = IotHub()
    assert (options.auth, options.module, options.websockets) == ("x509", "", False)
    assert options.report_min_s == 1.0


def test_without_the_sdk_the_agent_says_which_extra_is_missing():
    """A device that is moved to IoT Hub and lacks it is told how to get it."""
    code = """
import sys
sys.modules["azure.iot.device"] = None
from pathlib import Path
from edgefleet_agent import compose
from edgefleet_agent.config import Config
from edgefleet_agent.tls import Tls
from edgefleet_shared.errors import InvalidInputError
try:
    compose.iothub(Config(), "iothub://h", "cam-1", Tls(*[Path()] * 3), None, None)
except InvalidInputError as error:
    print(error.code, error.hint)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "configuration Install the agent's extra edgefleet-agent[iothub].\n"

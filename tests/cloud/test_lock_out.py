"""Guessing: failures are counted by address, answered 429, told once, and never cost the right."""

from __future__ import annotations

from ipaddress import ip_network

import httpx
import pytest

from edgefleet_cloud.auth.limits import FailureLimit, client_of
from edgefleet_cloud.errors import TooManyAttemptsError
from tests.cloud.access_world import caller

PROXIES = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))


@pytest.fixture
def strict(cloud):
    """A fleet manager that takes three failures, and forgives one in ten minutes."""
    cloud.stop()
    text = cloud.folder.config.read_text()
    cloud.folder.config.write_text(text + "\n[limits]\nauth_failures = 3\nauth_refill_s = 600\n")
    cloud.start()
    return cloud


def _try(cloud, token, **headers):
    return cloud.anyone.get(
        "/v1/devices", headers={"Authorization": f"Bearer {token}", **headers}
    ).status_code


def _lock_outs(cloud):
    query = {"filter": "type == 'auth.locked_out'"}
    return cloud.client.get("/v1/events", params=query).json()["items"]


def test_a_guesser_waits(strict):
    """After the failures that are answered comes 429 with Retry-After, and one event, not more."""
    assert strict.client.get("/v1/devices").status_code == 200
    assert [_try(strict, f"guess-{n}") for n in range(8)] == [401] * 3 + [429] * 5
    headers = {"Authorization": "Bearer guess"}
    answer = strict.anyone.get("/v1/devices", headers=headers)
    assert answer.json()["code"] == "too_many_attempts"
    assert 1 <= int(answer.headers["Retry-After"]) <= 600
    (told,) = _lock_outs(strict)
    assert (told["subject"], told["actor"]) == ("clients/127.0.0.1", "system")


def test_who_was_right_before_passes(strict):
    """A token that worked goes on working; a right one that was never seen must wait too."""
    made = strict.client.post("/v1/tokens", json={"name": "late"}).json()["token"]
    for n in range(4):
        _try(strict, f"guess-{n}")
    assert strict.client.get("/v1/devices").status_code == 200
    assert _try(strict, made) == 429


def test_a_revoked_token_is_a_guess(strict):
    """What was right once and is so no longer is refused, and counted."""
    client = caller(strict, "gone", "viewer")
    assert client.get("/v1/devices").status_code == 200
    strict.client.delete("/v1/tokens/gone")
    codes = [client.get("/v1/devices").status_code for _ in range(5)]
    assert codes == [401, 401, 401, 429, 429]


def test_success_and_silence_are_not_limited(strict):
    """Neither right tokens nor requests without any use up attempts."""
    for _ in range(10):
        assert strict.client.get("/v1/devices").status_code == 200
        assert strict.anyone.get("/v1/devices").status_code == 401
    assert _try(strict, "guess") == 401


def test_tickets_are_counted_too(strict):
    """Enrolment answers a few bad tickets, then 429; tokens are counted apart."""
    codes = [
        strict.anyone.post("/v1/enrollments", json={"ticket": "x", "csr": "x"}).status_code
        for _ in range(5)
    ]
    assert codes == [422, 422, 422, 429, 429]
    (told,) = _lock_outs(strict)
    assert told["data"]["with"] == "a ticket"
    assert _try(strict, "guess") == 401


def test_devices_are_counted_one_by_one(strict):
    """A device whose statements do not hold locks out itself, not its neighbours."""
    codes = []
    for device in ["cam-1"] * 5 + ["cam-2"]:
        headers = {"Authorization": f"DSSE {device}.e30"}
        path = "/v1/blobs/sha256:" + "0" * 64
        codes.append(httpx.get(strict.url + path, headers=headers).status_code)
    assert codes == [401, 401, 401, 429, 429, 401]


def test_forwarded_addresses_are_believed_of_proxies_alone(strict):
    """Without trusted_proxies nobody escapes the count by a header of their own."""
    spread = [_try(strict, "x", **{"X-Forwarded-For": f"198.51.100.{n}"}) for n in range(5)]
    assert spread == [401, 401, 401, 429, 429]
    strict.stop()
    text = strict.folder.config.read_text()
    trusting = 'trusted_proxies = ["127.0.0.1"]\n' + text
    strict.folder.config.write_text(trusting)
    strict.start()
    spread = [_try(strict, "x", **{"X-Forwarded-For": f"198.51.100.{n}"}) for n in range(5)]
    assert spread == [401] * 5
    lying = [
        _try(strict, "x", **{"X-Forwarded-For": f"203.0.113.{n}, 198.51.100.9"}) for n in range(5)
    ]
    assert lying == [401, 401, 401, 429, 429]


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("198.51.100.7", "", "198.51.100.7"),
        ("198.51.100.7", "203.0.113.1", "198.51.100.7"),
        ("10.0.0.1", "203.0.113.1", "203.0.113.1"),
        ("10.0.0.1", "1.1.1.1, 203.0.113.1", "203.0.113.1"),
        ("10.0.0.1", "1.1.1.1, 203.0.113.1, 10.0.0.2", "203.0.113.1"),
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", "nonsense", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.1, nonsense, 10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", "203.0.113.1:443", "203.0.113.1"),
        ("10.0.0.1", "[2001:db8:1:2::7]:443", "2001:db8:1:2::/64"),
        ("10.0.0.1", "2001:db8:1:2::7", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:3:4:5:6", "", "2001:db8:1:2::/64"),
        ("fd00::1", "2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("::ffff:198.51.100.7", "", "198.51.100.7"),
        ("::ffff:10.0.0.1", "203.0.113.1", "203.0.113.1"),
        ("", "", ""),
    ],
)
def test_who_is_counted(peer, forwarded, client):
    """The last address that no trusted proxy wrote; an IPv6 caller by its 64 bits."""
    assert client_of(peer, forwarded, PROXIES) == client


class Seconds:
    """A clock that the test turns."""

    now = 0.0

    def __call__(self):
        return self.now


def test_failures_are_forgiven_one_by_one():
    """One comes back each refill; a lock-out is told again only after a whole rest."""
    clock = Seconds()
    limit = FailureLimit(3, 10, clock)
    assert [limit.failed("a") for _ in range(3)] == [False, False, True]
    with pytest.raises(TooManyAttemptsError) as refused:
        limit.admit("a")
    assert refused.value.headers == {"Retry-After": "10"}
    limit.admit("b")
    clock.now = 10.0
    limit.admit("a")
    assert not limit.failed("a")
    clock.now = 60.0
    assert [limit.failed("a") for _ in range(3)] == [False, False, True]


def test_memory_is_bounded():
    """However many addresses fail, only the newest are remembered."""
    limit = FailureLimit(1, 10, Seconds(), most=100)
    for n in range(1000):
        limit.failed(f"client-{n}")
    assert len(limit._buckets) == 100
    limit.admit("client-0")
    with pytest.raises(TooManyAttemptsError):
        limit.admit("client-999")

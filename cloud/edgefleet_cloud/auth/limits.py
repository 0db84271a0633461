"""How often somebody may fail to prove who they are: a bucket of attempts for each address."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from edgefleet_cloud.errors import TooManyAttemptsError

Network = IPv4Network | IPv6Network
MOST_CLIENTS = 10_000
_HOPS = 20


def client_of(peer: str, forwarded: str, trusted: Sequence[Network]) -> str:
    """Return who failures count for: an IPv4 address, or an IPv6 network of 64 bits.

    Args:
        peer: Address of the other end of the connection.
        forwarded: The X-Forwarded-For header, '' without one. Anybody may send it, so it is read
            from its end, and only as far as trusted proxies wrote it.
        trusted: Networks of those proxies.
    """
    address = peer
    for hop in reversed(forwarded.split(",")[-_HOPS:]):
        if not _within(address, trusted):
            break
        if not _is_address(_bare(hop)):
            break
        address = _bare(hop)
    return _grouped(address)


def _bare(hop: str) -> str:
    """Return the address of an entry; some proxies write a port behind it."""
    text = hop.strip()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


def _within(address: str, networks: Sequence[Network]) -> bool:
    return _is_address(address) and any(_plain(address) in network for network in networks)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _plain(address: str) -> IPv4Address | IPv6Address:
    found = ip_address(address)
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return mapped or found


def _grouped(address: str) -> str:
    if not _is_address(address):
        return address[:64]  # a Unix socket has none
    found = _plain(address)
    # Whoever has one IPv6 address has 2^64 of them.
    return str(found) if found.version == 4 else str(ip_network((int(found), 64), strict=False))


@dataclass
class _Bucket:
    left: float
    since: float
    told: bool = False


class FailureLimit:
    """Counts failures a client; one that has used them up waits until some come back.

    Args:
        burst: Failures in a row that are still answered.
        refill_s: Seconds after which one of them is forgiven.
        clock: Seconds that only grow.
        most: Clients remembered; the one that failed longest ago is forgotten first.
    """

    def __init__(
        self,
        burst: int,
        refill_s: float,
        clock: Callable[[], float] = time.monotonic,
        most: int = MOST_CLIENTS,
    ) -> None:
        self._burst, self._refill_s = burst, refill_s
        self._clock = clock
        self._most = most
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        self._turn = threading.Lock()

    def admit(self, client: str) -> None:
        """Let a client try.

        Raises:
            TooManyAttemptsError: It has failed too often; `headers` tell when to come again.
        """
        with self._turn:
            left = self._filled(client).left if client in self._buckets else self._burst
        if left < 1:
            raise TooManyAttemptsError(math.ceil((1 - left) * self._refill_s))

    def failed(self, client: str) -> bool:
        """Count a failure; return whether with it a lock-out began."""
        with self._turn:
            bucket = self._filled(client)
            self._buckets.move_to_end(client)
            bucket.left = max(0.0, bucket.left - 1)
            while len(self._buckets) > self._most:
                self._buckets.popitem(last=False)
            begins = bucket.left < 1 and not bucket.told
            bucket.told = bucket.told or begins
            return begins

    def _filled(self, client: str) -> _Bucket:
        now = self._clock()
        bucket = self._buckets.setdefault(client, _Bucket(self._burst, now))
        bucket.left = min(self._burst, bucket.left + (now - bucket.since) / self._refill_s)
        bucket.since = now
        if bucket.left >= self._burst:  # it has rested: the next lock-out is another one
            bucket.told = False
        return bucket

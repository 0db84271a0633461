"""Fetch one blob by digest: resumable, never longer than signed, never believed unhashed."""

from __future__ import annotations

import hashlib
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self
from urllib.parse import urljoin, urlsplit

import urllib3

from edgefleet_agent.config import Store as StoreConfig
from edgefleet_agent.errors import FetchError, StoreFullError
from edgefleet_agent.store import Store
from edgefleet_agent.watchdog import POOLS, Watchdog
from edgefleet_shared.errors import EdgeFleetError

CHUNK = 64 * 1024
BACKOFF_MIN_S = 0.5
BACKOFF_MAX_S = 60.0
REDIRECTS = 3

Progress = Callable[[int], None]
"""Called with the bytes of this blob that have arrived."""


class Fetcher:
    """Brings blobs into the store.

    Args:
        store: Where they go.
        config: Lowest rate and how long it is borne.
        authorization: Gives the `Authorization` header for one request to a URL.
        refused: Told of every attempt that failed, for a log line or an event.
    """

    def __init__(
        self,
        store: Store,
        config: StoreConfig,
        authorization: Callable[[str], str],
        refused: Callable[[EdgeFleetError], None],
    ) -> None:
        self._store, self._config = store, config
        self._authorization, self._refused = authorization, refused
        self._pool = urllib3.PoolManager(
            maxsize=1, timeout=urllib3.Timeout(connect=10.0, read=config.fetch_stall_s)
        )
        self._pool.pool_classes_by_scheme = POOLS

    def fetch(
        self, base: str, digest: str, size: int, stop: threading.Event, progress: Progress
    ) -> bool:
        """Fetch one blob, trying again with jittered back-off for as long as it is wanted.

        Args:
            base: URL under which `/<digest>` answers.
            digest: What it must hash to.
            size: Its signed length in bytes.
            stop: Set when it is no longer wanted.
            progress: Told how far it is.

        Returns:
            Whether it is in the store; False if `stop` was set first.

        Raises:
            StoreFullError: The disk is full.
        """
        delay = BACKOFF_MIN_S
        while not stop.is_set():
            before = _length(self._store.partial(digest))
            try:
                self._attempt(f"{base.rstrip('/')}/{digest}", digest, size, stop, progress)
            except FetchError as error:
                if stop.is_set():
                    return False
                self._refused(error)
                if _length(self._store.partial(digest)) > before:
                    delay = BACKOFF_MIN_S
                stop.wait(random.uniform(delay / 2, delay))  # noqa: S311 - jitter, no secret
                delay = min(delay * 2, BACKOFF_MAX_S)
            else:
                return not stop.is_set()
        return False

    def _attempt(
        self, url: str, digest: str, size: int, stop: threading.Event, progress: Progress
    ) -> None:
        path = self._store.partial(digest)
        try:
            with _Partial(path, size) as partial:
                if partial.length < size:
                    self._receive(url, partial, stop, progress)
                found = partial.digest
        except OSError as error:
            raise StoreFullError(
                f"The blob cannot be written: {error.strerror or error}.",
                hint="Free the disk; the deployment can be assigned again.",
            ) from error
        if stop.is_set():
            return
        if found != digest:
            path.unlink(missing_ok=True)
            raise FetchError(
                f"What {url} sent does not hash to its name; it is thrown away.",
                code="digest_mismatch",
            )
        self._store.commit(digest)

    def _receive(
        self, url: str, partial: _Partial, stop: threading.Event, progress: Progress
    ) -> None:
        config = self._config
        watchdog = Watchdog(config.fetch_min_bytes_per_s, config.fetch_stall_s, stop)
        try:
            with watchdog:
                self._read(self._open(url, partial), partial, watchdog, stop, progress)
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            if not watchdog.slow:
                raise FetchError(f"{url} could not be read: {error}.") from error
        if watchdog.slow:
            raise FetchError(
                f"{url} sent under {config.fetch_min_bytes_per_s} bytes a second.", code="too_slow"
            )
        if partial.length < partial.size and not stop.is_set():
            raise FetchError(f"{url} ended after {partial.length} of {partial.size} bytes.")

    def _read(
        self,
        response: urllib3.BaseHTTPResponse,
        partial: _Partial,
        watchdog: Watchdog,
        stop: threading.Event,
        progress: Progress,
    ) -> None:
        """Append the body as it was sent: a blob is bytes, and decoding is where bombs go off."""
        try:
            while not stop.is_set() and (chunk := response.read1(CHUNK, decode_content=False)):
                partial.append(chunk)
                progress(partial.length)
                watchdog.add(len(chunk))
        finally:
            response.close()

    def _open(self, url: str, partial: _Partial) -> urllib3.BaseHTTPResponse:
        """Ask for what is missing; on any answer but a matching 206, begin again from zero."""
        offset = partial.length
        response = self._ask(url, offset)
        if response.status == 206:
            if response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
                return response
        elif response.status == 200:
            partial.restart()
            return response
        response.close()
        if response.status in {206, 416}:
            partial.restart()  # the next attempt begins anew
        raise FetchError(f"{url} answered {response.status}.", code=f"http_{response.status}")

    def _ask(self, url: str, offset: int) -> urllib3.BaseHTTPResponse:
        """Send the request, and again where it is redirected; no body but the last one is read."""
        headers = {"Authorization": self._authorization(url), "Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        for _ in range(REDIRECTS):
            response = self._pool.request(
                "GET",
                url,
                headers=headers,
                preload_content=False,
                redirect=False,
                retries=urllib3.Retry(0, raise_on_status=False),
            )
            location = response.get_redirect_location()
            if not location:
                return response
            response.close()
            before, url = url, urljoin(url, location)
            if urlsplit(before)[:2] != urlsplit(url)[:2]:
                headers.pop("Authorization", None)  # it says who we are to one host alone
        raise FetchError(f"{url} is one redirect too many.")


class _Partial:
    """What has arrived of one blob: a file, its length and its hash, kept in step."""

    def __init__(self, path: Path, size: int) -> None:
        self.size = size
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._hasher = hashlib.sha256()
        self.length = 0
        if os.fstat(self._fd).st_size > size:
            self.restart()
        while chunk := os.read(self._fd, 1024 * 1024):
            self._hasher.update(chunk)
            self.length += len(chunk)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    @property
    def digest(self) -> str:
        return "sha256:" + self._hasher.hexdigest()

    def append(self, chunk: bytes) -> None:
        if self.length + len(chunk) > self.size:
            self.restart()
            raise FetchError(
                f"The server sends more than the {self.size} signed bytes.", code="too_long"
            )
        rest = memoryview(chunk)
        while rest:
            rest = rest[os.write(self._fd, rest) :]
        self._hasher.update(chunk)
        self.length += len(chunk)

    def restart(self) -> None:
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._hasher = hashlib.sha256()
        self.length = 0


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0

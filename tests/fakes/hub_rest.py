"""A hub's service API without HTTP: the double's own state behind the methods of `HubRest`."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from edgefleet_cloud.errors import NotFoundError
from edgefleet_cloud.iothub.rest import RefusedError, Throttled
from edgefleet_cloud.ports import Handler
from edgefleet_provisioning.iothub_double.refusals import HubError
from edgefleet_provisioning.iothub_double.state import Hub
from edgefleet_shared.errors import UnavailableError


class FakeHubRest:
    """Registry and twins of one hub, with its rules and limits.

    Attributes:
        up: Whether it answers at all.
        latency_s: How long each write takes.
        writes: Devices whose twins were written to, in order.
        calls: What was asked of the registry: (verb, device).
        most_at_once: The most writes that were under way together.
        at_once: The most writes to one device that were under way together.
    """

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.up, self.latency_s = True, 0.0
        self.writes: list[str] = []
        self.calls: list[tuple[str, str]] = []
        self.most_at_once, self.at_once = 0, 0
        self._under_way: list[str] = []
        self._lock = threading.Lock()
        self.lose_answers = 0  # so many writes are done and their answers lost

    def close(self) -> None:
        """Do nothing: there is no connection."""

    def patch_twin(self, device: str, patch: Mapping[str, Any], module: str = "") -> dict[str, Any]:
        """Write to a twin."""
        with self._lock:
            self._under_way.append(device)
            self.most_at_once = max(self.most_at_once, len(self._under_way))
            self.at_once = max(self.at_once, self._under_way.count(device))
        try:
            time.sleep(self.latency_s)
            found = self._ask(lambda: self._patch(device, patch, module))
            with self._lock:
                self.writes.append(device)
                lost = self.lose_answers > 0
                self.lose_answers -= lost
            if lost:
                raise UnavailableError("the answer is lost", code="iothub")
            return found
        finally:
            with self._lock:
                self._under_way.remove(device)

    def device(self, device: str) -> dict[str, Any] | None:
        """Return an identity, or None."""
        self.calls.append(("get", device))
        try:
            found: dict[str, Any] = self._ask(lambda: self._registry().get(device).document())
        except NotFoundError:
            return None
        return found

    def put_device(self, identity: Mapping[str, Any], *, etag: str = "") -> dict[str, Any]:
        """Create or change a device."""
        device, status = identity["deviceId"], identity["status"]
        auth = identity["authentication"]["type"]
        self.calls.append(("put", device))

        def put() -> Any:
            if etag:
                return self._registry().update(device, if_match=etag, status=status).document()
            return self._registry().create(device, auth=auth, status=status).document()

        found: dict[str, Any] = self._ask(put)
        return found

    def delete_device(self, device: str) -> None:
        """Take a device out."""
        self.calls.append(("delete", device))
        try:
            self._ask(lambda: self._registry().delete(device))
        except NotFoundError:
            return

    def _patch(self, device: str, patch: Mapping[str, Any], module: str) -> Any:
        self.hub.throttles.spend("twin_updates")
        return self.hub.patch_twin(device, module, patch)

    def _registry(self) -> Any:
        self.hub.throttles.spend("registry")
        return self.hub.registry

    def _ask(self, call: Any) -> Any:
        if not self.up:
            raise UnavailableError("the hub is away", code="iothub")
        try:
            return call()
        except HubError as error:
            if error.status == 404:
                raise NotFoundError(str(error)) from error
            if error.status == 429:
                raise Throttled(str(error), error.retry_after or 1.0) from error
            raise RefusedError(str(error), error.status) from error


class FakeUpward:
    """The half that listens: a test says what devices say."""

    def __init__(self) -> None:
        self.connected = False
        self._handler: Handler | None = None

    def start(self, handler: Handler) -> None:
        """Begin."""
        self._handler, self.connected = handler, True

    def stop(self) -> None:
        """End."""
        self.connected = False

    def says(self, topic: str, payload: bytes) -> None:
        """Have a device say something."""
        assert self._handler is not None
        self._handler(topic, payload)

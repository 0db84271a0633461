"""Hears the fleet manager's event stream and tells it on, one line an event that is news."""

from __future__ import annotations

import contextlib
import json
import threading
from typing import Any

import httpx

from edgefleet_provisioning.demo.narrator import Narrator
from edgefleet_shared.steps import Step


class Listener(threading.Thread):
    """Follows `GET /v1/events` as server-sent events until `stop`."""

    def __init__(self, api: httpx.Client, narrator: Narrator) -> None:
        super().__init__(daemon=True)
        self._url = str(api.base_url) + "/v1/events"
        self._headers = {**api.headers, "accept": "text/event-stream"}
        self._narrator = narrator
        self._done = threading.Event()
        self._told: set[tuple[str, str, str]] = set()

    def run(self) -> None:
        """Follow the stream; the end of the server is the end of the story."""
        last = "0"
        while not self._done.is_set():
            with (
                contextlib.suppress(httpx.HTTPError),
                httpx.stream(
                    "GET",
                    self._url,
                    headers={**self._headers, "last-event-id": last},
                    timeout=httpx.Timeout(10.0, read=60.0),
                ) as response,
            ):
                for line in response.iter_lines():
                    if line.startswith("id:"):
                        last = line[3:].strip()
                    elif line.startswith("data:"):
                        self._tell(json.loads(line[5:]))
                    if self._done.is_set():
                        return
            self._done.wait(0.2)

    def stop(self) -> None:
        """Stop telling."""
        self._done.set()

    def _tell(self, event: dict[str, Any]) -> None:
        """Tell an event once for each text and subject; retries and repeats are not news."""
        key = (event["type"], event.get("subject", ""), event["message"])
        if not event.get("step") or key in self._told:
            return
        self._told.add(key)
        subject = str(event.get("subject", "")).rsplit("/", 1)[-1]
        self._narrator.say(f"{subject:<8} {event['message']}", Step(event["step"]))

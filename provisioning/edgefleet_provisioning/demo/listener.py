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
    """Follows `GET /v1/events` as server-sent events until `stop`.

    Args:
        api: Where, and with which token.
        canary: The device that is told of in full; of the others, only what they activate.
        narrator: Hears it.
    """

    def __init__(self, api: httpx.Client, canary: str, narrator: Narrator) -> None:
        super().__init__(daemon=True)
        self._canary = canary
        self._url = str(api.base_url) + "/v1/events"
        self._headers = {**api.headers, "accept": "text/event-stream"}
        self._narrator = narrator
        self._done = threading.Event()

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
        subject = str(event.get("subject", "")).rsplit("/", 1)[-1]
        if not event.get("step") or not self._is_news(event, subject):
            return
        where = f"{subject}  " if event["type"].startswith("device.") else ""
        self._narrator.say(where + event["message"], Step(event["step"]))

    def _is_news(self, event: dict[str, Any], subject: str) -> bool:
        """Leave out what the fleet manager repeats of a device, and the others' small steps."""
        kind, _, what = event["type"].partition(".")
        if kind == "device":
            return subject == self._canary or event["step"] == Step.ACTIVATE
        if kind == "assignment":
            return subject == self._canary
        return kind in {"model", "model_version", "trust", "rollout"} and what != "created"

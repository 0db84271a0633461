"""A broker that remembers whom it was told to throw out."""

from __future__ import annotations


class RecordingDisconnector:
    """The port Disconnector; `calls` holds the device ids in order."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def disconnect(self, device_id: str) -> None:
        """Remember the call."""
        self.calls.append(device_id)

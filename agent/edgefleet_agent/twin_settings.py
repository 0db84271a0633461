"""Settings that a module's twin gives: a few, by name, each with its bounds; no more than that.

Desired properties come from whoever may write to the hub, not from who signs models. So nothing
here decides what runs: how much is logged, how often telemetry is told.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from edgefleet_agent import durable
from edgefleet_agent.config import Config

logger = logging.getLogger("edgefleet")


class TwinSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`desired.edgefleet.config`; what is absent is as the configuration says."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] | None = None
    telemetry_interval_s: Annotated[float, Meta(ge=1, le=86_400)] | None = None


class Live:
    """What may change while the agent runs. Remembered on disk, for a start without the hub.

    Args:
        config: What was configured.
        path: `<state_dir>/twin.json`; None where no twin is.
    """

    def __init__(self, config: Config, path: Path | None) -> None:
        self._config, self._path = config, path
        self._settings = TwinSettings()
        self._values = self._remembered() if path else {}
        self._apply()

    @property
    def interval_s(self) -> float:
        """Seconds a telemetry window."""
        return self._settings.telemetry_interval_s or self._config.telemetry.interval_s

    def heed(self, section: Mapping[str, Any], whole: bool) -> None:
        """Take what our section of the desired properties says.

        Args:
            section: All of it, or a merge patch.
            whole: Which of the two.
        """
        if not whole and "config" not in section:
            return
        given = section.get("config")
        before = dict(self._values)
        merged = {} if whole or given is None else dict(before)
        merged.update(given if isinstance(given, Mapping) else {})
        self._values = {name: value for name, value in merged.items() if value is not None}
        if self._values != before and not self._apply():
            self._values = before
        elif self._values != before and self._path:
            with contextlib.suppress(OSError):  # the twin says it again at the next start
                durable.atomic_write(self._path, json.dumps(self._values).encode())

    def _apply(self) -> bool:
        level = self._settings.log_level
        try:
            self._settings = msgspec.convert(self._values, TwinSettings)
        except msgspec.ValidationError as error:
            logger.warning("the twin's settings do not hold and change nothing: %s", error)
            return False
        if self._settings.log_level != level:
            logger.setLevel(self._settings.log_level or self._config.log_level.upper())
        return True

    def _remembered(self) -> dict[str, Any]:
        assert self._path is not None
        try:
            found = json.loads(durable.read_bytes(self._path) or b"{}")
        except (OSError, ValueError):
            return {}  # damaged: the twin says it again
        return found if isinstance(found, dict) else {}

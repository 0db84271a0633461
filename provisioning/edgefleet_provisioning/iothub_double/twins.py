"""A section of a twin: what may lie in it, how a patch changes it, what is kept about each key.

Pure. Rules as in Microsoft's "Understand and use device twins in IoT Hub".
"""

from __future__ import annotations

import copy
import unicodedata
from collections.abc import Mapping
from typing import Any

from edgefleet_provisioning.iothub_double.clock import iso
from edgefleet_provisioning.iothub_double.refusals import bad

PROPERTIES_BYTES = 32 * 1024
TAGS_BYTES = 8 * 1024
STRING_BYTES = 4 * 1024
KEY_BYTES = 1024
DEPTH = 10
INTEGER_MIN, INTEGER_MAX = -(2**52), 2**52 - 1


class Section:
    """Desired or reported properties, or tags.

    Args:
        limit: Bytes that may lie in it, counted as the hub counts.
        now: Time of making, in seconds since 1970.
    """

    def __init__(self, limit: int, now: float) -> None:
        self.limit = limit
        self.values: dict[str, Any] = {}
        self.version = 1
        self.metadata: dict[str, Any] = {"$lastUpdated": iso(now)}

    def patch(self, patch: Mapping[str, Any], now: float) -> None:
        """Merge a patch: objects are merged, null deletes, everything else replaces.

        Raises:
            HubError: 400; the section is as it was.
        """
        check(patch)
        merged = copy.deepcopy(self.values)
        merge(merged, patch)
        self._keep(merged, patch, now)

    def replace(self, values: Mapping[str, Any], now: float) -> None:
        """Put something else in the place of all there is.

        Raises:
            HubError: 400; the section is as it was.
        """
        check(values)
        merged: dict[str, Any] = {}
        merge(merged, values)
        gone = {key: None for key in self.values if key not in values}
        self._keep(merged, {**gone, **values}, now)

    def with_metadata(self) -> dict[str, Any]:
        """Return a copy as the service reads it."""
        return copy.deepcopy({**self.values, "$metadata": self.metadata, "$version": self.version})

    def with_version(self) -> dict[str, Any]:
        """Return a copy as the device reads it."""
        return copy.deepcopy({**self.values, "$version": self.version})

    def change(self, patch: Mapping[str, Any]) -> dict[str, Any]:
        """Return a patch as a change event tells it: with what is kept about its keys."""
        about = {key: value for key, value in self.metadata.items() if key[0] == "$"}
        about |= {key: self.metadata[key] for key in patch if key in self.metadata}
        return copy.deepcopy({**patch, "$metadata": about, "$version": self.version})

    def _keep(self, merged: dict[str, Any], patch: Mapping[str, Any], now: float) -> None:
        size = size_of(merged)
        if size > self.limit and size > size_of(self.values):
            raise bad(f"The section would be of {size} bytes; {self.limit} may lie there.")
        check(merged)  # a patch that is shallow enough may still deepen what is there
        self.values = merged
        self.version += 1
        _note(self.metadata, patch, merged, {"$lastUpdated": iso(now)})


def merge(target: dict[str, Any], patch: Mapping[str, Any]) -> None:
    """Merge a patch into an object, in place."""
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, Mapping):
            here = target.get(key)
            below: dict[str, Any] = here if isinstance(here, dict) else {}
            merge(below, value)
            target[key] = below
        else:
            target[key] = copy.deepcopy(value)


def check(value: object, depth: int = 0) -> None:
    """Look whether a twin may hold this.

    Raises:
        HubError: 400, with what is wrong.
    """
    if isinstance(value, Mapping):
        if depth > DEPTH:
            raise bad(f"Objects lie more than {DEPTH} deep.")
        for key, below in value.items():
            _check_key(key)
            check(below, depth + 1)
    elif isinstance(value, list):
        if depth > DEPTH:
            raise bad(f"Objects lie more than {DEPTH} deep.")
        for below in value:
            if below is None:
                raise bad("An array holds null.")
            check(below, depth + 1)
    elif isinstance(value, str):
        if len(value.encode()) > STRING_BYTES:
            raise bad(f"A string is longer than {STRING_BYTES} bytes.")
    elif isinstance(value, int) and not INTEGER_MIN <= value <= INTEGER_MAX:
        raise bad(f"{value} is no integer that a twin can hold.")


def size_of(value: object) -> int:
    """Return the bytes of a value as the hub counts: keys, strings, 8 a number, 4 a boolean."""
    if isinstance(value, Mapping):
        return sum(_text_size(key) + size_of(below) for key, below in value.items())
    if isinstance(value, list):
        return sum(size_of(below) for below in value)
    if isinstance(value, str):
        return _text_size(value)
    return 4 if isinstance(value, bool) or value is None else 8


def _check_key(key: object) -> None:
    if not isinstance(key, str) or not key or len(key.encode()) > KEY_BYTES:
        raise bad(f"A key has between 1 and {KEY_BYTES} bytes.")
    wrong = next((c for c in key if c in ".$ " or unicodedata.category(c) == "Cc"), None)
    if wrong is not None:
        raise bad(f"The key {key!r} holds {wrong!r}, which no key may.")


def _text_size(text: str) -> int:
    return len("".join(c for c in text if unicodedata.category(c) != "Cc").encode())


def _note(
    about: dict[str, Any], patch: Mapping[str, Any], merged: Mapping[str, Any], mark: dict[str, Any]
) -> None:
    """Mark the keys of a patch as changed now, and forget those that are gone."""
    about.update(mark)
    for key, value in patch.items():
        if key not in merged:
            about.pop(key, None)
            continue
        below = about.setdefault(key, {})
        below.update(mark)
        inner = merged[key]
        if isinstance(value, Mapping) and isinstance(inner, Mapping):
            _note(below, value, inner, mark)
        else:
            about[key] = dict(mark)

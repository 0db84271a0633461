"""What people type, as the API wants it: labels, waves, policies, times. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.identifiers import check_name
from edgefleet_shared.messages import Policy, SwapWay
from edgefleet_shared.package import Batching
from edgefleet_shared.times import parse_time

LABEL = re.compile(r"([a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?)=(.{0,256})", re.DOTALL)
REMOVED = re.compile(r"([a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?)-")


def labels(texts: Sequence[str]) -> dict[str, str]:
    """Return labels written `key=value`.

    Raises:
        InvalidInputError: One is not.
    """
    found: dict[str, str] = {}
    for text in texts:
        match = LABEL.fullmatch(text)
        if match is None:
            raise InvalidInputError(
                f"{text[:80]!r} is not a label.",
                code="invalid_label",
                hint="Write key=value; keys are of a-z, 0-9, '-' and '_'.",
            )
        found[match[1]] = match[2]
    return found


def label_changes(texts: Sequence[str]) -> dict[str, str | None]:
    """Return changes written `key=value` or, to remove one, `key-`.

    Raises:
        InvalidInputError: One is neither.
    """
    found: dict[str, str | None] = {}
    for text in texts:
        match = REMOVED.fullmatch(text)
        found |= {match[1]: None} if match and "=" not in text else labels([text])
    return found


def batching(max_batch_size: int, max_queue_delay_us: int) -> Batching | None:
    """Return what a manifest says of batching; None if nothing was typed.

    Raises:
        InvalidInputError: A delay without a size (code `usage`).
    """
    if max_batch_size:
        return Batching(max_batch_size, max_queue_delay_us)
    if max_queue_delay_us:
        raise InvalidInputError(
            "--max-queue-delay-us needs --max-batch-size: how many rows are run as one.",
            code="usage",
        )
    return None


def waves(canary: Sequence[str], specs: Sequence[str]) -> list[dict[str, Any]] | None:
    """Return the waves of a rollout; None leaves them to the server: one wave for all.

    Args:
        canary: Devices that go first, all others after them.
        specs: Each `[NAME=]WHO`, WHO being a count (5), a share (10%), `rest`, or device ids with
            commas between.

    Raises:
        InvalidInputError: Both are given, or a wave is none.
    """
    if canary and specs:
        raise InvalidInputError(
            "--canary and --wave exclude each other.",
            code="usage",
            hint="--wave canary=cam-1 --wave rest says the same as --canary cam-1.",
        )
    if canary:
        first = {"name": "canary", "devices": [check_name(d, "device") for d in canary]}
        return [first, {"name": "rest", "rest": True}]
    return [_wave(index, spec) for index, spec in enumerate(specs)] or None


def _wave(index: int, spec: str) -> dict[str, Any]:
    name, equals, who = spec.partition("=")
    if not equals:
        name, who = ("rest" if spec == "rest" else f"wave-{index + 1}"), spec
    check_name(name, "wave")
    if who == "rest":
        return {"name": name, "rest": True}
    if who.isascii() and who.isdigit():
        return {"name": name, "count": int(who)}
    if who.endswith("%"):
        return {"name": name, "percent": _percent(who)}
    return {"name": name, "devices": [check_name(d, "device") for d in who.split(",")]}


def policy(
    probation_s: int | None, texts: Sequence[str], swap: SwapWay | None = None
) -> dict[str, int | str]:
    """Return a rollout's policy: what was said of it; the rest is the server's defaults.

    Args:
        probation_s: The option of that name.
        texts: Each `KEY=NUMBER`, the keys being those of `messages.Policy` but `swap`.
        swap: The option of that name.

    Raises:
        InvalidInputError: An unknown key, not a number, or a key twice.
    """
    keys = [key for key in Policy.__struct_fields__ if key != "swap"]
    found: dict[str, int | str] = {} if probation_s is None else {"probation_s": probation_s}
    if swap is not None:
        found["swap"] = swap
    for text in texts:
        key, _, number = text.partition("=")
        if key not in keys or not (number.isascii() and number.isdigit()):
            raise InvalidInputError(
                f"{text[:80]!r} is not part of a policy.",
                code="policy",
                hint=f"Write KEY=NUMBER; keys are {', '.join(keys)}.",
            )
        if key in found:
            raise InvalidInputError(f"{key} is given twice.", code="policy")
        found[key] = int(number)
    return found


def _percent(text: str) -> float:
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = 0.0
    if not 0 < value <= 100:
        raise InvalidInputError(
            f"{text!r} is not a share.", code="waves", hint="Write more than 0% up to 100%."
        )
    return value


def moment(text: str | None) -> str:
    """Return a time as it was typed, '' for none.

    Raises:
        InvalidInputError: It is no RFC 3339 time in UTC.
    """
    if text is None:
        return ""
    try:
        parse_time(text)
    except InvalidInputError as error:
        raise InvalidInputError(
            error.message, code="invalid_time", hint="Write 2026-01-31T12:00:00Z."
        ) from error
    return text


def file_licenses(pairs: list[str]) -> dict[str, str]:
    """Return licences by file, as `PATH=SPDX` was typed.

    Raises:
        InvalidInputError: A pair is none.
    """
    found = {}
    for pair in pairs:
        path, equals, expression = pair.partition("=")
        if not path or not equals or not expression:
            raise InvalidInputError(
                f"{pair[:80]!r} is not PATH=SPDX.",
                code="usage",
                hint="For example --file-license labels.txt=CC0-1.0",
            )
        found[path] = expression
    return found

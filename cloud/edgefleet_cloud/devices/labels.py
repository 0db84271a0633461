"""Labels and hardware ids: what they may look like, and how a patch changes them. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from edgefleet_cloud.filters.fields import KEY
from edgefleet_shared.errors import InvalidInputError

MAX_LABELS = 64
MAX_VALUE = 128
_HARDWARE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")


def check_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Return the labels of a device, model or group if they may stand.

    Raises:
        InvalidInputError: Too many, a bad key or a bad value (code `invalid_label`).
    """
    if len(labels) > MAX_LABELS:
        raise _bad(f"{len(labels)} labels are too many", f"Use at most {MAX_LABELS}.")
    for key, value in labels.items():
        if not KEY.fullmatch(key):
            raise _bad(
                f"{key[:80]!r} cannot be a label's key",
                "A key is 1 to 63 of a-z, 0-9, '-' and '_', with a letter or digit at both ends.",
            )
        # Databases stop at a NUL, and a lone surrogate is not text.
        if len(value) > MAX_VALUE or any(c < " " or "\ud800" <= c <= "\udfff" for c in value):
            raise _bad(
                f"The value of label {key!r} cannot stand",
                f"A value is text of at most {MAX_VALUE} characters, on one line.",
            )
    return dict(labels)


def patch(labels: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """Return the labels after a merge patch: null removes, what is not named stays.

    Raises:
        InvalidInputError: The result may not stand.
    """
    merged = {**labels, **changes}
    return check_labels({key: value for key, value in merged.items() if value is not None})


def check_hardware(hardware: str) -> str:
    """Return a hardware id if it may stand.

    Raises:
        InvalidInputError: It may not (code `invalid_hardware`).
    """
    if not _HARDWARE.fullmatch(hardware):
        raise InvalidInputError(
            f"{hardware[:80]!r} cannot name hardware.",
            code="invalid_hardware",
            hint="For example generic-x86_64, raspberry-pi-5 or jetson-orin-nano.",
        )
    return hardware


def _bad(what: str, hint: str) -> InvalidInputError:
    return InvalidInputError(f"{what}.", code="invalid_label", hint=hint)

"""How one message from a device is handed to its handler: again until it works, or not for ever."""

from __future__ import annotations

import logging
from collections.abc import Callable

from edgefleet_shared.errors import UnavailableError

RETRY_S = (0.05, 5.0)
POISON_AFTER = 5

_log = logging.getLogger(__name__)


class Delivery:
    """The tries of one message.

    A message that breaks its handler is given up, or nothing behind it would get through.

    Args:
        what: Names it in the log.
        call: Hands it over; `ports.Handler` says what it may raise.
    """

    def __init__(self, what: str, call: Callable[[], None]) -> None:
        self._what = what
        self._call = call
        self.tries = 0
        self._failures = 0
        self._asked_s = 0.0

    @property
    def pause_s(self) -> float:
        """Return how long to wait before the next try, seconds; whoever asked for more gets it."""
        return max(self._asked_s, min(RETRY_S[1], RETRY_S[0] * 2.0 ** min(self.tries, 10)))

    def once(self) -> bool:
        """Try once; return whether the message is done with, one way or the other."""
        self.tries += 1
        try:
            self._call()
        except UnavailableError as error:
            _log.warning("%s waits: %s", self._what, error)
            self._asked_s = float(getattr(error, "retry_after_s", 0.0))
        except Exception:  # noqa: BLE001 - whatever it is, others wait behind it
            return self._failed()
        else:
            return True
        return False

    def _failed(self) -> bool:
        self._failures += 1
        _log.exception(
            "The handler of %s failed (%d of %d)", self._what, self._failures, POISON_AFTER
        )
        if self._failures < POISON_AFTER:
            return False
        _log.error("%s is dropped: it breaks its handler", self._what)
        return True

"""When agentd renews: at two thirds of its certificate's life, or when it is told to.

Everything but the request itself happens in agentd's own thread.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from cryptography import x509

from edgefleet_agent import config, rekeying, renewal
from edgefleet_agent.events import Emitter
from edgefleet_agent.identity import Identity
from edgefleet_agent.rekeying import Pending
from edgefleet_agent.renewal import Answer
from edgefleet_agent.trust.acceptance import Acceptance
from edgefleet_shared import strict_json
from edgefleet_shared.errors import EdgeFleetError, InvalidInputError, UnavailableError
from edgefleet_shared.renewal import RenewAsk
from edgefleet_shared.steps import Step

LOOK_S = 30.0
GAP_S = 10.0
"""Between two renewals, whoever asks: only the broker's word stands behind most of it."""
RETRY_MIN_S = 2.0
RETRY_MAX_S = 3600.0
DISTRUST_MIN_S = 600.0
DISTRUST_MAX_S = 24 * 3600.0
SPREAD = 0.05
"""Devices that enrolled together renew spread over this part of that time."""
ASK_MAX_BYTES = 1024


class Renewer:
    """Begins renewals and ends them.

    Args:
        settings: What is configured.
        identity: What is renewed.
        acceptance: Verifies answers, and must judge by the new key afterwards.
        emitter: Told of success and failure.
        later: Has something called in agentd's own thread.
        ended: Called there after each try, with whether the device has a new key now.
    """

    def __init__(
        self,
        settings: config.Identity,
        identity: Identity,
        acceptance: Acceptance,
        emitter: Emitter,
        later: Callable[[Callable[[], None]], None],
        ended: Callable[[bool], None],
    ) -> None:
        self._settings, self._identity = settings, identity
        self._acceptance, self._emitter = acceptance, emitter
        self._later, self._ended = later, ended
        self._due = _due(identity, settings.renew_at)
        self._wanted = settings.renew and rekeying.pending(identity.folder) is not None
        self._not_before = 0.0
        self._retry_s = RETRY_MIN_S
        self._distrust_s, self._distrust_from = DISTRUST_MIN_S, 0.0
        self.busy = False

    def wait_s(self) -> float:
        """Begin a renewal if one is due; return in how many seconds to look again."""
        now = time.monotonic()
        if self.busy:
            return LOOK_S
        left = (self._due - self._acceptance.now()).total_seconds()
        if not self._wanted and (left > 0 or not self._settings.renew):
            return min(LOOK_S, max(left, 0.1))
        if now < self._not_before:
            return self._not_before - now
        self._begin()
        return LOOK_S

    def asked(self, payload: bytes) -> None:
        """Heed a word that asks for a renewal, if it means the key that we have."""
        try:
            word = strict_json.decode(payload, RenewAsk, max_bytes=ASK_MAX_BYTES, what="word")
        except InvalidInputError as error:
            self._emitter.error(Step.RECEIVE, error)
            return
        if word.key == self._identity.who.key and self._settings.renew:
            self._wanted = True

    def distrusted(self) -> None:
        """The broker does not take our certificate, or we not its: others may be had over HTTP."""
        now = time.monotonic()
        if self._settings.renew and not self._wanted and now >= self._distrust_from:
            self._wanted = True
            self._distrust_from = now + self._distrust_s
            self._distrust_s = min(6 * self._distrust_s, DISTRUST_MAX_S)

    def trusted(self) -> None:
        """The connection stands."""
        self._distrust_s, self._distrust_from = DISTRUST_MIN_S, 0.0

    def force(self) -> None:
        """Renew now: somebody on this device says so."""
        self._wanted, self._not_before = True, 0.0

    def _begin(self) -> None:
        self.busy = True
        try:
            begun = renewal.begin(self._identity, self._acceptance)
        except (EdgeFleetError, OSError) as error:
            self._failed(error)
            return
        threading.Thread(target=self._ask, args=(begun,), name="renewal", daemon=True).start()

    def _ask(self, begun: Pending) -> None:
        try:
            answer = renewal.ask(self._identity, begun)
        except EdgeFleetError as error:
            failure = error
            self._later(lambda: self._failed(failure))
        else:
            self._later(lambda: self._arrived(begun, answer))

    def _arrived(self, begun: Pending, answer: Answer) -> None:
        try:
            certificate = renewal.install(self._identity, self._acceptance, begun, answer)
        except (EdgeFleetError, OSError) as error:
            self._failed(error)
            return
        self.busy = self._wanted = False
        self._due = _due(self._identity, self._settings.renew_at)
        self._not_before, self._retry_s = time.monotonic() + GAP_S, RETRY_MIN_S
        until = certificate.not_valid_after_utc
        self._emitter.tell(
            Step.RECEIVE, "renewed", f"the certificate is renewed, valid until {until:%Y-%m-%d}."
        )
        self._ended(True)

    def _failed(self, error: EdgeFleetError | OSError) -> None:
        self.busy = False
        wait = random.uniform(self._retry_s / 2, self._retry_s)  # noqa: S311 - jitter, no secret
        self._not_before = time.monotonic() + wait
        if self._retry_s == RETRY_MIN_S or not isinstance(error, UnavailableError):
            # Once for each time that it begins to fail: a fleet manager may be away for days.
            self._emitter.tell(
                Step.RECEIVE,
                "renewal_failed",
                str(error),
                level="warning",
                cause=error.code if isinstance(error, EdgeFleetError) else "storage",
            )
        self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)
        self._ended(False)


def _due(identity: Identity, part: float) -> datetime:
    """Return when the certificate has had `part` of its life, spread by the device's key."""
    found: x509.Certificate | None = identity.certificate()
    if found is None:
        return datetime.min.replace(tzinfo=UTC)
    life = found.not_valid_after_utc - found.not_valid_before_utc
    late = int(identity.who.key[-8:], 16) / 2**32 * SPREAD * part
    return found.not_valid_before_utc + timedelta(seconds=life.total_seconds() * (part + late))

"""`edgefleet-agent renew`: by agentd if it runs, else by this process."""

from __future__ import annotations

import os
import signal
import time

from cryptography import x509

from edgefleet_agent import compose, durable, renewal
from edgefleet_agent.config import Config
from edgefleet_agent.identity import Identity
from edgefleet_agent.status import read_status
from edgefleet_agent.trust.acceptance import Acceptance
from edgefleet_shared.errors import UnavailableError

PATIENCE_S = 45.0
LOOK_S = 0.1


def renew_now(config: Config) -> x509.Certificate:
    """Renew the device's key and certificate; return the new certificate.

    Raises:
        UnavailableError: The fleet manager does not answer, or agentd has not renewed in 45 s
            (code `renewal_failed`).
        TrustError: The answer does not hold.
        InvalidInputError: Not enrolled, or the fleet manager refuses.
    """
    folder = config.state / "identity"
    identity = Identity(folder, config.identity.key)
    before = identity.certificate()
    try:
        lock = compose.lock(durable.make_folder(config.state))
    except UnavailableError:
        return _by_agentd(config, identity, before)
    with lock:
        acceptance = Acceptance(
            config.state, identity.who, config.hardware_id, identity.root, time.time
        )
        begun = renewal.begin(identity, acceptance)
        return renewal.install(identity, acceptance, begun, renewal.ask(identity, begun))


def _by_agentd(
    config: Config, identity: Identity, before: x509.Certificate | None
) -> x509.Certificate:
    pid = read_status(config.run)["pid"]
    os.kill(pid, signal.SIGUSR1)
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        found = identity.certificate()
        if found is not None and found != before:
            return found
        time.sleep(LOOK_S)
    raise UnavailableError(
        f"agentd has not renewed within {PATIENCE_S:.0f} s; it goes on trying.",
        code="renewal_failed",
        hint="Its log, and `edgefleet events`, say why.",
    )

"""Prove and time the candidates of a stored version by the gateway's throw-away workers."""

from __future__ import annotations

import threading

import msgspec

from edgefleet_agent import variants
from edgefleet_agent.choosing import Choice, choose
from edgefleet_agent.ipc.control import Outcome
from edgefleet_agent.journal import VersionRef
from edgefleet_agent.toolbox import Toolbox
from edgefleet_shared.errors import IncompatibleError
from edgefleet_shared.package import Variant


class StoppedError(Exception):
    """A newer command waits; what was measured so far is not used."""


def measure(tools: Toolbox, version: VersionRef, stop: threading.Event) -> Choice:
    """Return the order in which to take the variants of a version; measured unless it is known.

    Raises:
        StoppedError: `stop` was set meanwhile.
        InvalidInputError: Nothing fits, or several fit and cannot be measured.
        UnavailableError: A file is missing, or the gateway went away.
        TrustError: A stored blob has changed.
        OSError: The choice cannot be written down.
    """
    manifest = tools.manifest(version.digest, version.size)
    found, refused = variants.candidates(manifest, tools.machine)

    def prove(variant: Variant) -> Outcome:
        spec = tools.spec(taken(version, variant.id))
        try:
            with tools.verified(spec) as fds:
                outcome = tools.gateway().prove(spec, fds, measure=True, stop=stop)
        except IncompatibleError as error:  # docker is away: another variant may run
            outcome = Outcome(0, ok=False, code=error.code, message=str(error))
        if stop.is_set():
            raise StoppedError
        tools.measured.note(taken(version, variant.id), outcome)
        return outcome

    return choose(version.digest, found, refused, tools.choices, prove)


def taken(version: VersionRef, variant: str, alternates: list[str] | None = None) -> VersionRef:
    """Return the version with another of its variants taken."""
    return msgspec.structs.replace(version, variant=variant, alternates=alternates or [])

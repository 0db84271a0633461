"""A smaller variant of a package answers while the version itself cannot.

A manifest may name, for a variant, another one as its fallback. It is loaded under a digest of its
own and routed where there is no room for two versions at once: the old one ends, the new one is
loaded, and no request waits for it. A stand-in that is found routed later, after a power cut or
because the new version could not be had, is replaced by the version that should serve.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from edgefleet_agent.gateway_client import GatewayLostError
from edgefleet_agent.ipc.control import ModelSpec
from edgefleet_agent.journal import VersionRef
from edgefleet_agent.ledger import Ledger, Standing
from edgefleet_agent.toolbox import Toolbox
from edgefleet_shared.errors import EdgeFleetError
from edgefleet_shared.identifiers import sha256_digest
from edgefleet_shared.states import DeploymentState
from edgefleet_shared.steps import Step


class StandIn(NamedTuple):
    """Who can stand in: a version with its fallback taken, and the same for the gateway."""

    version: VersionRef
    spec: ModelSpec


def stand_in_digest(digest: str, variant: str) -> str:
    """Return the name by which the gateway knows the stand-in of a package."""
    return sha256_digest(f"stand-in {variant} of {digest}".encode())


def of(tools: Toolbox, version: VersionRef) -> StandIn | None:
    """Return the fallback of a version's variant; None if there is none, or it cannot be read."""
    try:
        manifest = tools.manifest(version.digest, version.size)
        variants = {variant.id: variant for variant in manifest.variants}
        name = variants[version.variant].fallback if version.variant in variants else ""
        if not name:
            return None
        taken = msgspec.structs.replace(version, variant=name, alternates=[])
        spec = tools.spec(taken)
    except EdgeFleetError:  # damaged on disk: whoever needs the version itself says so
        return None
    digest = stand_in_digest(version.digest, name)
    return StandIn(taken, msgspec.structs.replace(spec, digest=digest))


def find(tools: Toolbox, ledger: Ledger, version: VersionRef) -> StandIn | None:
    """Return who can answer while `version` takes its place: a trusted one if there is one."""
    for candidate in _candidates(ledger, version):
        if found := of(tools, candidate):
            return found
    return None


def _candidates(ledger: Ledger, version: VersionRef) -> Sequence[VersionRef]:
    record, serving = ledger.record, ledger.serving
    going_back = bool(record.deployment and record.deployment.state is DeploymentState.ROLLING_BACK)
    # Who goes back goes back to what was good, and so does who stands in for it.
    if version in (record.active, record.previous):
        return [version] if serving is None or going_back else [version, serving]
    return [version] if serving is None else [serving, version]


def answer(tools: Toolbox, ledger: Ledger, version: VersionRef, why: str) -> str:
    """Load and route who stands in while `version` takes its place.

    Args:
        tools: The shared parts.
        ledger: The slot's page.
        version: What takes its place.
        why: The end of the sentence that tells it: "while ...".

    Returns:
        The digest that answers now; '' if nobody stands in, and the route is as it was.

    Raises:
        GatewayLostError: The gateway went away.
    """
    found = find(tools, ledger, version)
    if found is None:
        return ""
    client, spec = tools.gateway(), found.spec
    now = client.stats()
    standing = Standing(spec.digest, spec.variant, {stats.digest: stats for stats in now})
    if any(stats.role == "active" and stats.digest == spec.digest for stats in now):
        ledger.stand_in = ledger.stand_in or standing
        return spec.digest
    try:
        with tools.verified(spec) as fds:
            outcome = client.load(spec, fds)
        tools.measured.note(found.version, outcome)
        if not outcome.ok:
            ledger.tell(Step.ACTIVATE, outcome.code, outcome.message, level="error")
            return ""
        client.flip(spec.model, spec.digest)
    except GatewayLostError:
        raise
    except EdgeFleetError as error:
        ledger.tell(Step.ACTIVATE, error.code, str(error), level="error")
        return ""
    ledger.stand_in = standing
    text = f"{spec.accelerator} answers with {spec.version} ({spec.variant}) while {why}."
    ledger.tell(Step.ACTIVATE, "stand_in", text, level="warning", variant=spec.variant)
    return spec.digest


def strayed(tools: Toolbox, ledger: Ledger) -> bool:
    """Return whether a stand-in answers for the version that should serve.

    Raises:
        GatewayLostError: The gateway went away.
    """
    serving = ledger.serving
    if serving is None:
        return False
    name = routed(tools, ledger.name)
    if name in {"", serving.digest}:
        return False
    found = (of(tools, version) for version in (serving, *ledger.record.versions()))
    return any(one is not None and one.spec.digest == name for one in found)


def running(tools: Toolbox) -> set[str]:
    """Return every digest that is loaded."""
    return {stats.digest for stats in tools.gateway().stats() if stats.role != "released"}


def routed(tools: Toolbox, model: str) -> str:
    """Return the digest that a model's route names, '' if it has no route."""
    stats = tools.gateway().stats()
    return next((s.digest for s in stats if s.model == model and s.role == "active"), "")

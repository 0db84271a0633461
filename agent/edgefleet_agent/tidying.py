"""What a slot gives up once nobody needs it: workers, containers, a lost prepared form."""

from __future__ import annotations

import threading

from edgefleet_agent import fabric
from edgefleet_agent.gateway_client import GatewayLostError
from edgefleet_agent.ledger import Ledger
from edgefleet_agent.loading import Loading
from edgefleet_agent.toolbox import Toolbox
from edgefleet_shared.errors import EdgeFleetError
from edgefleet_shared.steps import Step


class Tidying:
    """Tidies up after a deployment.

    Args:
        tools: The shared parts.
        ledger: The slot's page.
        stop: Set when a newer command waits; preparing then ends.
    """

    def __init__(self, tools: Toolbox, ledger: Ledger, stop: threading.Event) -> None:
        self._tools, self._ledger = tools, ledger
        self._loading = Loading(tools, ledger, stop)

    def prepare_again(self) -> None:
        """Make the prepared form of what serves where it was lost, or other software is here."""
        serving = self._ledger.serving
        if serving is None or not self._tools.prepared.lacks(serving):
            return
        try:
            spec = self._tools.spec(serving)
            with self._tools.verified(spec) as fds:
                self._loading.prepare(serving, spec, fds)
        except GatewayLostError:
            raise
        except EdgeFleetError as error:  # it serves on all the same
            self._ledger.tell(Step.PREPARE, error.code, str(error), level="warning")

    def containers(self) -> None:
        """Remove this slot's containers that no worker speaks to, and images that no slot needs."""
        tools, name = self._tools, self._ledger.name
        if not tools.containers.known():
            return
        stats = tools.gateway().stats()
        loaded = {s.digest for s in stats if s.model == name and s.role != "released"}
        boxed = {v.digest for v in self._ledger.record.versions() if v.image}
        tools.containers.sweep(loaded & boxed, name)
        tools.containers.drop_images(i for v in tools.journal.versions() for i in v.images.values())

    def release(self) -> None:
        """End every worker that neither serves nor is routed.

        Raises:
            GatewayLostError: The gateway went away.
        """
        serving = self._ledger.serving
        deployment = self._ledger.record.deployment
        drain_s = deployment.target.policy.drain_s if deployment else 10
        for stats in self._tools.gateway().stats():
            if stats.model != self._ledger.name or stats.role in {"active", "released"}:
                continue
            if serving and stats.digest == serving.digest:
                continue
            self._tools.gateway().release(stats.digest, drain_s)
        fabric.tidy(self._tools)

"""amqtt in a process of its own: `python -m edgefleet_cloud.broker.amqtt_child PARENT PORT`."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from typing import Any

import amqtt.broker
from amqtt.broker import Broker, RetainedApplicationMessage
from amqtt.mqtt.constants import QOS_1
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.plugins.base import BaseAuthPlugin
from amqtt.session import OutgoingApplicationMessage, Session

from edgefleet_cloud.broker.tether import die_with

SESSION_S = 7 * 86400


class Loopback(BaseAuthPlugin):  # type: ignore[misc]  # amqtt ships no types
    """Lets everybody in, as amqtt's own plugin for that does, but keeps their sessions.

    amqtt forgets the session of a client that it marks anonymous as soon as the client is gone,
    and what was queued for it.
    """

    async def authenticate(self, *, session: Session) -> bool:
        """Accept any client; only this machine can reach the port."""
        del session
        return True


class Keeping(BrokerProtocolHandler):  # type: ignore[misc]  # amqtt ships no types
    """Keeps for the next connection what was sent and not acknowledged.

    amqtt drops it as soon as the connection ends, which breaks QoS 1: a fleet manager that dies
    between receiving and committing would lose the message.
    """

    async def _handle_qos1_message_flow(self, app_message: Any) -> None:
        session = self.session
        try:
            await super()._handle_qos1_message_flow(app_message)
        finally:
            unanswered = (
                isinstance(app_message, OutgoingApplicationMessage)
                and not app_message.puback_packet
                and session is not None
                and not session.clean_session
            )
            if unanswered:
                session.retained_messages.put_nowait(
                    RetainedApplicationMessage(None, app_message.topic, app_message.data, QOS_1)
                )


def configuration(port: int) -> dict[str, Any]:
    """Return amqtt's configuration for a port on 127.0.0.1."""
    return {
        "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
        "session_expiry_interval": SESSION_S,
        "plugins": {f"{__spec__.name}.{Loopback.__name__}": {}},
    }


async def serve(parent: int, port: int) -> None:
    """Run until SIGTERM or the parent's end."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    broker = Broker(configuration(port))
    await broker.start()
    while not stop.is_set() and os.getppid() == parent:
        try:
            await asyncio.wait_for(stop.wait(), timeout=1.0)
        except TimeoutError:
            continue
    await broker.shutdown()


def main() -> None:
    """Tie this process to its parent and serve."""
    parent, port = int(sys.argv[1]), int(sys.argv[2])
    die_with(parent)
    amqtt.broker.BrokerProtocolHandler = Keeping
    logging.basicConfig(level=logging.ERROR)
    asyncio.run(serve(parent, port))


if __name__ == "__main__":
    main()

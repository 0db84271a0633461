"""amqtt in a process of its own: `python -m edgefleet_cloud.broker.amqtt_child PARENT LISTEN ...`.

PARENT is the starter's process id, LISTEN is HOST:PORT; three more arguments are the files of
`amqtt_rules.TlsFiles`. SIGHUP has them read again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from typing import Any

import amqtt.broker

from edgefleet_cloud.broker import amqtt_rules
from edgefleet_cloud.broker.amqtt_rules import Handler, Present, RuledBroker, TlsFiles, Topics
from edgefleet_cloud.broker.tether import die_with

SESSION_S = 7 * 86400

log = logging.getLogger(__name__)


def configuration(listen: str) -> dict[str, Any]:
    """Return amqtt's configuration for HOST:PORT."""
    return {
        "listeners": {"default": {"type": "tcp", "bind": listen}},
        "session_expiry_interval": SESSION_S,
        "plugins": {f"{amqtt_rules.__name__}.{kind.__name__}": {} for kind in (Present, Topics)},
    }


async def serve(parent: int, listen: str, tls: TlsFiles | None) -> None:
    """Run until SIGTERM or the parent's end."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    broker = RuledBroker(configuration(listen), tls)
    loop.add_signal_handler(signal.SIGHUP, _reload, broker)
    await broker.start()
    while not stop.is_set() and os.getppid() == parent:
        try:
            await asyncio.wait_for(stop.wait(), timeout=1.0)
        except TimeoutError:
            continue
    await broker.shutdown()


def _reload(broker: RuledBroker) -> None:
    try:
        broker.reload()
    except OSError:
        log.exception("The TLS files cannot be read again; the ones before stand")


def main() -> None:
    """Tie this process to its parent and serve."""
    parent, listen, files = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    die_with(parent)
    amqtt.broker.BrokerProtocolHandler = Handler
    logging.basicConfig(level=logging.ERROR)
    asyncio.run(serve(parent, listen, TlsFiles(*files) if files else None))


if __name__ == "__main__":
    main()

"""The listening socket of the fleet manager."""

from __future__ import annotations

import asyncio
import socket

import msgspec
import pytest

from edgefleet_cloud.config import Config
from edgefleet_cloud.server import bind
from edgefleet_shared.errors import InvalidInputError


def config(listen: str) -> Config:
    """Return a configuration that listens there."""
    fields = {"fleet": "demo", "listen": listen}
    return msgspec.convert(fields, Config)


def test_answers_do_not_wait_for_acknowledgements():
    """Nagle's algorithm is off on every connection that this socket accepts."""

    async def nodelay(listener: socket.socket) -> int:
        accepted = asyncio.get_running_loop().create_future()

        def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peer = writer.get_extra_info("socket")
            accepted.set_result(peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        server = await asyncio.start_server(serve, sock=listener)
        async with server:
            _, writer = await asyncio.open_connection(*listener.getsockname()[:2])
            found = await accepted
            writer.close()
            await writer.wait_closed()
        return int(found)

    listener, _ = bind(config("127.0.0.1:0"))
    assert asyncio.run(nodelay(listener)) == 1


def test_a_taken_address_is_refused_with_a_hint():
    """Two cannot listen on one port; the second is told what to change."""
    listener, real = bind(config("127.0.0.1:0"))
    listener.listen()
    with listener, pytest.raises(InvalidInputError, match="cannot listen") as caught:
        bind(config(real.listen))
    assert "listen" in caught.value.hint

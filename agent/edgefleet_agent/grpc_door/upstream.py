"""Asks the gateway over its Unix socket, by HTTP/1.1 on connections that are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from edgefleet_shared.errors import UnavailableError

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Reply(NamedTuple):
    """An answer: status, headers by lower-case name, body."""

    status: int
    headers: dict[str, str]
    body: bytes


class Upstream:
    """A pool of connections to one socket; as many are open as requests are at a time."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._idle: list[Connection] = []

    async def ask(
        self,
        method: str,
        path: str,
        headers: Sequence[tuple[str, int | str]] = (),
        body: Sequence[bytes] = (),
    ) -> Reply:
        """Send one request and return its answer.

        A connection that had been kept may have closed meanwhile: then it is asked on a fresh one.
        Asking an inference twice does no harm.

        Raises:
            UnavailableError: The gateway does not answer (code `gateway_lost`).
        """
        fields = [("Host", "localhost"), *headers]
        if method == "POST":
            fields.append(("Content-Length", sum(map(len, body))))
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields)]
        head = "\r\n".join([*lines, "", ""]).encode()
        while self._idle:
            try:
                return await self._exchange(self._idle.pop(), head, body)
            except (OSError, EOFError):
                continue
        try:
            fresh = await asyncio.open_unix_connection(self._path)
            return await self._exchange(fresh, head, body)
        except (OSError, EOFError) as error:
            raise UnavailableError(
                f"The gateway does not answer: {error}.", code="gateway_lost"
            ) from error

    async def _exchange(self, held: Connection, head: bytes, body: Sequence[bytes]) -> Reply:
        reader, writer = held
        try:
            writer.writelines([head, *body])
            await writer.drain()
            reply = await _read(reader)
        except BaseException:  # a cancelled call too: its answer would be the next one's
            writer.close()
            raise
        if reply.headers.get("connection") == "close":
            writer.close()
        else:
            self._idle.append(held)
        return reply

    def close(self) -> None:
        """Close what is kept."""
        for _, writer in self._idle:
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Reply:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines[1:] if line)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Reply(int(lines[0].split(" ", 2)[1]), headers, body)

"""All REST interfaces of the double on HTTPS, in a thread of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from edgefleet_provisioning.iothub_double import rest_login, rest_web
from edgefleet_provisioning.iothub_double.credentials import read_token
from edgefleet_provisioning.iothub_double.entra import Issuer
from edgefleet_provisioning.iothub_double.refusals import HubError
from edgefleet_provisioning.iothub_double.rest_hub import HubApi
from edgefleet_provisioning.iothub_double.state import Azure, Hub

_PATIENCE_S = 20.0


class RestServer:
    """Serves every hub of a double, and what belongs to none of them.

    Each hub has a port of its own; on the common one a request's Host header or its token says
    which hub it means.

    Args:
        azure: The hubs.
        issuer: Of Entra ID's tokens.
        certificate: PEM file with the server's certificate and its key.
        address: Where it listens.
        port: The common port; 0: any.
        hub_ports: Ports of hubs by host name; any for those that are not named.
        more: Routes beside those of hubs and issuer.
    """

    def __init__(
        self,
        azure: Azure,
        issuer: Issuer,
        certificate: Path,
        address: str = "127.0.0.1",
        *,
        port: int = 0,
        hub_ports: Mapping[str, int] | None = None,
        more: Sequence[BaseRoute] = (),
    ) -> None:
        self.address = address
        self._azure = azure
        wanted = {host: (hub_ports or {}).get(host, 0) for host in azure.hubs}
        self._common = _listen(address, port)
        self._own = {host: _listen(address, number) for host, number in wanted.items()}
        self._hubs = {sock.getsockname()[1]: host for host, sock in self._own.items()}
        self.api = HubApi(self._hub_of, issuer)
        app = Starlette(
            routes=[*more, *self.api.routes(), *rest_login.routes(issuer)],
            exception_handlers={404: _unknown, 405: _unknown},
        )
        self._plain = _listen(address, 0)
        self._servers = [_server(app, certificate), _server(app, None)]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="azure-rest", daemon=True)

    @property
    def port(self) -> int:
        """The common port."""
        return int(self._common.getsockname()[1])

    @property
    def plain(self) -> tuple[str, int]:
        """Address and port of the same over HTTP, for who ends TLS before it."""
        return self.address, int(self._plain.getsockname()[1])

    def hub_port(self, host: str) -> int:
        """Return a hub's own port."""
        return int(self._own[host].getsockname()[1])

    def start(self) -> None:
        """Serve; return when requests are answered.

        Raises:
            RuntimeError: It does not come up.
        """
        self._thread.start()
        until = time.monotonic() + _PATIENCE_S
        while not all(server.started for server in self._servers):
            if not self._thread.is_alive() or time.monotonic() > until:
                raise RuntimeError("The REST interfaces of the double do not start.")
            time.sleep(0.01)

    def stop(self) -> None:
        """End the thread; connections that stay open are cut."""
        self._loop.call_soon_threadsafe(self._cut)
        self._thread.join()
        for sock in (self._common, self._plain, *self._own.values()):
            sock.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        secure, plain = self._servers
        await asyncio.gather(
            secure.serve([self._common, *self._own.values()]), plain.serve([self._plain])
        )
        self._cut()
        await asyncio.sleep(0.01)  # what was cut is closed in the loop's next turns

    def _cut(self) -> None:
        for server in self._servers:
            server.should_exit = True
            for connection in list(server.server_state.connections):
                transport = getattr(connection, "transport", None)
                if transport is not None:
                    transport.abort()

    def _hub_of(self, request: Request) -> Hub:
        hub = self._named(request)
        if hub.host in self._azure.away:
            raise HubError(503, "ServiceUnavailable", f"{hub.host} is off the net.", 1.0)
        return hub

    def _named(self, request: Request) -> Hub:
        own = self._hubs.get(int(request.scope["server"][1]))
        if own is not None:
            return self._azure.hub(own)
        named = request.headers.get("host", "").partition(":")[0].lower()
        if named in self._azure.hubs:
            return self._azure.hub(named)
        if len(self._azure.hubs) == 1:
            return next(iter(self._azure.hubs.values()))
        said = read_token(request.headers.get("authorization", ""))
        return self._azure.hub(said.resource.split("/")[0])


def _server(app: Starlette, certificate: Path | None) -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(
            app,
            ssl_certfile=certificate,
            lifespan="off",
            ws="none",
            http="h11",
            loop="asyncio",
            log_config=None,
            access_log=False,
            timeout_keep_alive=60,
        )
    )


def _listen(address: str, port: int) -> socket.socket:
    # Named as TCP, or asyncio leaves Nagle's algorithm on and each answer takes 40 ms.
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, port))
    return sock


async def _unknown(request: Request, error: Exception) -> Response:
    status = int(getattr(error, "status_code", 404))
    told = f"There is nothing at {request.method} {request.url.path}."
    return rest_web.refusal(HubError(status, "GenericNotFound", told))

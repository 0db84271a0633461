"""The workload API of an IoT Edge device: it signs for its modules, so that they hold no key.

What azure.iot.device asks of it: `trust-bundle`, and `modules/{id}/genid/{generation}/sign`.
"""

from __future__ import annotations

import base64
import json
import re
import socketserver
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

from edgefleet_provisioning.iothub_double.credentials import sign
from edgefleet_provisioning.iothub_double.refusals import HubError, bad
from edgefleet_provisioning.iothub_double.state import Hub

API_VERSION = "2019-01-30"
_SIGN = re.compile(r"/modules/(?P<module>[^/]+)/genid/(?P<generation>[^/]+)/sign")


class Workload:
    """The API on a Unix socket, for one device.

    Args:
        hub: Its hub.
        device: Its id; its modules are registered there with symmetric keys.
        socket: Where to listen.
        gateway: Host name or address that its modules connect to.
        ca_pem: The trust bundle.
    """

    def __init__(self, hub: Hub, device: str, socket: Path, gateway: str, ca_pem: str) -> None:
        self.hub, self.device, self.ca_pem = hub, device, ca_pem
        self._socket, self._gateway = socket, gateway
        socket.unlink(missing_ok=True)
        self._server = _Server(str(socket), _handler(self))
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._socket.unlink(missing_ok=True)

    def environment(self, module: str) -> dict[str, str]:
        """Return the environment that IoT Edge gives a module's container.

        Raises:
            HubError: 404, there is no such module.
        """
        identity = self.hub.registry.get(self.device, module)
        return {
            "IOTEDGE_IOTHUBHOSTNAME": self.hub.host,
            "IOTEDGE_GATEWAYHOSTNAME": self._gateway,
            "IOTEDGE_DEVICEID": self.device,
            "IOTEDGE_MODULEID": module,
            "IOTEDGE_MODULEGENERATIONID": identity.generation,
            "IOTEDGE_WORKLOADURI": f"unix://{self._socket}",
            "IOTEDGE_APIVERSION": API_VERSION,
            "IOTEDGE_AUTHSCHEME": "sasToken",
        }

    def sign(self, module: str, generation: str, request: Any) -> str:
        """Sign for a module.

        Raises:
            HubError: 400 or 404.
        """
        identity = self.hub.registry.get(self.device, module)
        if identity.generation != generation or not identity.primary:
            raise HubError(404, "NotFound", f"There is no module {module} of this generation.")
        if not isinstance(request, dict) or request.get("algo") != "HMACSHA256":
            raise bad("The algorithm is HMACSHA256.")
        try:
            data = base64.b64decode(request["data"], validate=True).decode()
        except (KeyError, TypeError, ValueError) as error:
            raise bad("The data is text in base64.") from error
        return sign(identity.primary, data)


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


def _handler(workload: Workload) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/trust-bundle":
                self._say(200, {"certificate": workload.ca_pem})
            else:
                self._say(404, {"message": "There is no such page."})

        def do_POST(self) -> None:
            named = _SIGN.fullmatch(self.path.partition("?")[0])
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            if named is None:
                self._say(404, {"message": "There is no such page."})
                return
            request = None
            with suppress(ValueError):
                request = json.loads(body)
            try:
                digest = workload.sign(unquote(named["module"]), named["generation"], request)
            except HubError as error:
                self._say(error.status, {"message": str(error)})
            else:
                self._say(200, {"digest": digest})

        def address_string(self) -> str:
            return "unix"

        def log_message(self, *_: object) -> None:
            """Say nothing: a test's output is its own."""

        def _say(self, status: int, body: dict[str, str]) -> None:
            said = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

    return Handler

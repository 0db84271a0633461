"""The Open Inference Protocol's paths, and what each answers."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote_to_bytes

from edgefleet_agent import __version__
from edgefleet_agent.gateway import metrics
from edgefleet_agent.gateway.backend import Backend
from edgefleet_agent.gateway.messages import Request, document, error, status_line
from edgefleet_agent.gateway.plane import Plane
from edgefleet_agent.gateway.statistics import model_statistics
from edgefleet_agent.ipc.frames import NO_JSON
from edgefleet_agent.ipc.http1 import DEADLINE_KEY
from edgefleet_shared.processing_rules import outer

if TYPE_CHECKING:
    from edgefleet_agent.gateway.guests import Guests
    from edgefleet_agent.gateway.http import Connection

PLATFORMS = {"onnxruntime": "onnx_onnxv1", "litert": "tflite_flatbuffer"}
EXTENSIONS = [
    "binary_tensor_data", "model_repository(index)", "statistics", "edgefleet_deadline",
    "edgefleet_processing",
]  # fmt: skip
_KNOWN_BYTES = 512
_DEADLINE = re.compile(rb"\s*:\s*([0-9]{1,9})\s*[,}]")


class Target(NamedTuple):
    """A path, taken apart: kind is `infer`, `model`, `model_ready`, a fixed path's name, or ''."""

    kind: str
    model: str = ""
    version: str = ""


FIXED = {
    "v2": Target("server"),
    "v2/health/live": Target("live"),
    "v2/health/ready": Target("ready"),
    "v2/repository/index": Target("index"),
    "v2/models/stats": Target("stats"),
    "metrics": Target("metrics"),
}
POSTED = {"infer", "index"}


def parse_target(target: bytes) -> Target:
    """Take a request target apart; the query is ignored, kind '' is an unknown path."""
    return _known(target) if len(target) <= _KNOWN_BYTES else _take_apart(target)


def _take_apart(target: bytes) -> Target:
    path = unquote_to_bytes(target.partition(b"?")[0]).decode("utf-8", "replace").strip("/")
    if path in FIXED:
        return FIXED[path]
    parts = path.split("/")
    if len(parts) < 3 or parts[:2] != ["v2", "models"] or not parts[2]:
        return Target("")
    model, rest, version = parts[2], parts[3:], ""
    if len(rest) >= 2 and rest[0] == "versions":
        version, rest = rest[1], rest[2:]
    kinds = {(): "model", ("ready",): "model_ready", ("infer",): "infer", ("stats",): "stats"}
    return Target(kinds.get(tuple(rest), ""), model, version)


_known = lru_cache(maxsize=1024)(_take_apart)

_NOT_OURS = {
    b"/load": "Models are loaded and unloaded by the fleet manager, not by clients.",
    b"/unload": "Models are loaded and unloaded by the fleet manager, not by clients.",
    b"/config": "There is no model configuration; /v2/models/NAME shows what a model takes.",
    b"sharedmemory": "Named shared memory is not offered; edgefleet_agent.client sends memory.",
}
"""What Triton's clients may ask for and this server leaves out, by what is in the path."""


def _nothing(target: bytes) -> str:
    """Say of a path that answers nothing what it was meant to be, where that is known."""
    path = target.partition(b"?")[0][:_KNOWN_BYTES]
    if path.startswith(b"/v2/"):
        for part, text in _NOT_OURS.items():
            if path.endswith(part) or (part == b"sharedmemory" and part in path):
                return text
    return "There is nothing at this path."


def deadline_parameter(body: bytes, json_length: int) -> int:
    """Return the nanoseconds that the parameter `deadline_ms` of a request gives it, 0 = none.

    Looked for and not parsed: the gateway reads no tensors, and within a string the key's quotes
    would be escaped.
    """
    end = len(body) if json_length == NO_JSON else json_length
    at = body.find(DEADLINE_KEY, 0, end)
    if at < 0:
        return 0
    found = _DEADLINE.match(body, at + len(DEADLINE_KEY), end)
    return int(found[1]) * 1_000_000 if found else 0


class Endpoints:
    """Answers requests; inference goes on to the router.

    Args:
        plane: What is loaded and routed.
        guests: Who is connected.
        triton_metrics: Show Triton's names among the metrics, unasked.
    """

    def __init__(self, plane: Plane, guests: Guests, *, triton_metrics: bool = False) -> None:
        self._plane = plane
        self._guests = guests
        self._triton_metrics = triton_metrics
        self.submit = plane.router.submit
        self.lend_after = plane.lending.after
        self.lend = plane.lending.offer

    def handle(self, request: Request, connection: Connection) -> None:
        """Answer, now or later, by `connection`."""
        target = parse_target(request.target)
        if target.kind == "infer" and request.method == b"POST":
            self.submit(
                connection,
                target.model,
                target.version,
                request.body,
                request.json_length,
                request.timeout_ns or deadline_parameter(request.body, request.json_length),
                begun_ns=request.begun_ns,
            )
            return
        connection.send(self._answer(request, target))

    def offer(self, connection: Connection, target: bytes) -> str:
        """Lend a connection to the worker that answers `target`; return the model, '' = stays."""
        found = parse_target(target)
        if found.kind != "infer" or not self._plane.lending.offer(
            connection, found.model, found.version
        ):
            return ""
        return found.model

    @staticmethod
    def of_another_model(request: Request, model: str) -> bool:
        """Tell whether a request asks another model than `model`."""
        target = parse_target(request.target)
        return target.kind == "infer" and target.model != model

    def _answer(self, request: Request, target: Target) -> bytes:
        if not target.kind:
            return error(404, _nothing(request.target), "unknown_path")
        allowed = {b"POST"} if target.kind == "infer" else {b"GET"}
        if target.kind == "index":
            allowed.add(b"POST")
        method = b"GET" if request.method == b"HEAD" else request.method
        if method not in allowed:
            allow = b"Allow: " + b", ".join(sorted(allowed)) + b"\r\n"
            return error(405, "This path takes another method.", "method_not_allowed", allow)
        if target.kind == "server":
            fields = {"name": "edgefleet", "version": __version__, "extensions": EXTENSIONS}
            return document(fields)
        if target.kind == "live":
            return document({"live": True})
        if target.kind == "ready":
            ready = any(self._ready(r.active) for r in self._plane.router.routes.values())
            # The specification's schema says `live` here; clients read either, or the status.
            return document({"ready": ready, "live": ready}, 200 if ready else 503)
        if target.kind == "index":
            return document(self._index())
        if target.kind == "metrics":
            return self._metrics(request)
        if target.kind == "stats":
            return self._statistics(target)
        return self._model(target)

    def _model(self, target: Target) -> bytes:
        route = self._plane.router.routes.get(target.model)
        if route is None:
            return error(404, f"There is no model {target.model!r}.", "unknown_model")
        backend = route.find(target.version)
        if backend is None:
            text = f"Model {target.model!r} has no version {target.version!r} loaded."
            return error(404, text, "unknown_version")
        if target.kind == "model_ready":
            ready = self._ready(backend)
            fields = {"name": target.model, "ready": ready}
            return document(fields, 200 if ready else 503)
        spec = backend.spec
        versions = [one.spec.version for one in (route.active, route.standby) if one]
        inputs, outputs, bare = spec.inputs, spec.outputs, {}
        if spec.processing is not None:
            bare = {"raw_inputs": inputs, "raw_outputs": outputs}
            inputs, outputs = outer(spec.processing, inputs, outputs)
        return document({
            "name": spec.model,
            "versions": versions,
            "platform": PLATFORMS.get(spec.runtime, spec.runtime),
            "inputs": inputs,
            "outputs": outputs,
            **bare,
        })  # fmt: skip

    def _statistics(self, target: Target) -> bytes:
        stats = self._plane.stats(restart_gaps=False)
        found = model_statistics(stats, target.model, target.version)
        if target.model and not found["model_stats"]:
            wanted = f"{target.model} {target.version}".strip()
            return error(404, f"There is no model {wanted!r}.", "unknown_model")
        return document(found)

    def _metrics(self, request: Request) -> bytes:
        triton = self._triton_metrics or b"compat=triton" in request.target.partition(b"?")[2]
        page = metrics.render(self._plane, len(self._guests), triton=triton)
        return status_line(200, len(page), kind=metrics.CONTENT_TYPE) + page

    def _index(self) -> list[dict[str, Any]]:
        found = []
        for backend in self._plane.backends.values():
            role = self._plane.role(backend)
            state = "READY" if self._ready(backend) and role != "idle" else "UNAVAILABLE"
            reason = backend.quarantined or ("" if backend.ready else "restarting")
            spec = backend.spec
            found.append({
                "name": spec.model, "version": spec.version, "state": state,
                "reason": reason or ("" if role != "idle" else "loaded, not routed"),
            })  # fmt: skip
        return found

    @staticmethod
    def _ready(backend: Backend) -> bool:
        return backend.ready and not backend.quarantined

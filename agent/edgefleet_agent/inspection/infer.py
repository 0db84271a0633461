"""`edgefleet-agent infer`: ask a model by hand, over the same socket as applications."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import socket
import time
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any
from urllib.parse import quote

from edgefleet_agent.config import Config
from edgefleet_agent.inspection.denied import as_owner
from edgefleet_agent.inspection.output import say
from edgefleet_shared.errors import InvalidInputError, UnavailableError

BYTES = {
    "BOOL": 1, "UINT8": 1, "INT8": 1, "UINT16": 2, "INT16": 2, "FP16": 2, "UINT32": 4, "INT32": 4,
    "FP32": 4, "UINT64": 8, "INT64": 8, "FP64": 8,
}  # fmt: skip
"""Bytes an element of each datatype."""
SHOWN = 12
TIMEOUT_S = 60.0


class _Uds(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(str(self.path))


def register(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("model", help="its name")
    parser.add_argument("--model-version", default="", help="a version that stands by")
    parser.add_argument(
        "--input", action="append", default=[], metavar="NAME=VALUE",
        help="JSON, or @FILE: little-endian elements, or for BYTES the file itself (a JPEG)",
    )  # fmt: skip
    parser.add_argument("--zeros", action="store_true", help="zeros for every input not given")
    parser.add_argument(
        "--count", type=int, default=1, metavar="N", help="ask so often, and tell the latency"
    )


def run(config: Config, options: argparse.Namespace) -> int:
    """Ask and print the outputs.

    Raises:
        InvalidInputError: The inputs do not fit, or the model refuses them.
        UnavailableError: The gateway does not answer, or has no such model.
    """
    if options.count < 1:
        raise InvalidInputError("--count must be 1 or more.", code="usage")
    path = f"/v2/models/{quote(options.model, safe='')}"
    if options.model_version:
        path += f"/versions/{quote(options.model_version, safe='')}"
    times = []
    with contextlib.closing(_Uds(config.run / "infer.sock")) as connection:
        metadata = _metadata(connection, path)
        body, headers = build(metadata["inputs"], options.input, zeros=options.zeros)
        for _ in range(options.count):
            begun = time.perf_counter()
            answer = _ask(connection, "POST", f"{path}/infer", body, headers)
            times.append((time.perf_counter() - begun) * 1e6)
    times.sort()
    latency = {
        "count": len(times), "p50_us": round(times[len(times) // 2]),
        "p99_us": round(times[len(times) * 99 // 100]),
    }  # fmt: skip
    say({**answer, "latency": latency}, _lines(answer, latency), as_json=options.json)
    return 0


def _metadata(connection: http.client.HTTPConnection, path: str) -> Any:
    try:
        return _ask(connection, "GET", path, b"", {})
    except InvalidInputError as error:
        if error.code not in {"unknown_model", "unknown_version", "unknown_path"}:
            raise
        found = _ask(connection, "GET", "/v2/repository/index", b"", {})
        served = ", ".join(f"{one['name']} {one['version']}" for one in found)
        hint = f"This device serves {served or 'none'}."
        raise InvalidInputError(error.message, code=error.code, hint=hint) from error


def build(
    tensors: Sequence[dict[str, Any]], given: Sequence[str], *, zeros: bool
) -> tuple[bytes, dict[str, str]]:
    """Return the body of a request and its headers.

    Args:
        tensors: The model's inputs as its metadata has them.
        given: `NAME=VALUE` each, value JSON or `@FILE`.
        zeros: Fill what is not given.

    Raises:
        InvalidInputError: A name is unknown, a value is missing or does not fit.
    """
    values = _values(tensors, given)
    entries: list[dict[str, Any]] = []
    binary = b""
    for tensor in tensors:
        name, datatype = tensor["name"], tensor["datatype"]
        if name not in values and not zeros:
            raise InvalidInputError(
                f"Input {name!r} ({datatype} {tensor['shape']}) is not given.",
                code="infer_input",
                hint=f"Add --input {name}=JSON or --input {name}=@FILE, or --zeros.",
            )
        data = values.get(name)
        if isinstance(data, bytes):
            part = len(data).to_bytes(4, "little") + data if datatype == "BYTES" else data
            entry: dict[str, Any] = {
                "shape": _shape_of(tensor, data),
                "parameters": {"binary_data_size": len(part)},
            }
            binary += part
        else:
            shape = [1 if size == -1 else size for size in tensor["shape"]]
            if name in values:
                shape = _shape(data)
            else:
                data = ["" if datatype == "BYTES" else 0] * prod(shape)
            entry = {"shape": shape, "data": data}
        entries.append({"name": name, "datatype": datatype, **entry})
    head = json.dumps({"inputs": entries}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))} if binary else {}
    return head + binary, headers


def _values(tensors: Sequence[dict[str, Any]], given: Sequence[str]) -> dict[str, Any]:
    known = [tensor["name"] for tensor in tensors]
    values: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in known:
            raise InvalidInputError(
                f"{text[:80]!r} names no input of the model.",
                code="infer_input",
                hint=f"Give NAME=VALUE with a name of {', '.join(known)}.",
            )
        if name in values:
            raise InvalidInputError(f"Input {name!r} is given twice.", code="infer_input")
        try:
            values[name] = Path(value[1:]).read_bytes() if value[:1] == "@" else json.loads(value)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise InvalidInputError(
                f"The value {value[:80]!r} of {name!r} cannot be read: {why}.",
                code="infer_input",
                hint=f"Give JSON, for example {name}=[[1,2]], or {name}=@FILE for a file's bytes.",
            ) from error
    return values


def _shape(data: Any) -> list[int]:
    shape = []
    while isinstance(data, list):
        shape.append(len(data))
        data = data[0] if data else None
    return shape


def _shape_of(tensor: dict[str, Any], data: bytes) -> list[int]:
    """Return the shape that raw bytes have: the signature's, its one varying dimension solved."""
    shape: list[int] = list(tensor["shape"])
    if tensor["datatype"] == "BYTES":
        return [1 if size == -1 else size for size in shape]
    if shape.count(-1) == 1:
        fixed = prod(size for size in shape if size != -1) * BYTES[tensor["datatype"]]
        if fixed and len(data) % fixed == 0:
            shape[shape.index(-1)] = len(data) // fixed
    if -1 in shape or prod(shape) * BYTES[tensor["datatype"]] != len(data):
        raise InvalidInputError(
            f"{len(data)} bytes do not make {tensor['datatype']} {tensor['shape']}.",
            code="infer_input",
        )
    return shape


def _ask(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes,
    headers: dict[str, str],
) -> Any:
    try:
        connection.request(method, path, body or None, headers)
        response = connection.getresponse()
        data = response.read()
    except OSError as error:
        raise _unasked(connection, error) from error
    try:
        answer = json.loads(data)
    except ValueError:
        answer = {"error": data[:200].decode("utf-8", "replace")}
    if response.status == 200:
        return answer
    text, code = answer.get("error", "It failed."), answer.get("code", "inference_failed")
    if 400 <= response.status < 500:
        raise InvalidInputError(text, code=code)
    raise UnavailableError(text, code=code)


def _unasked(connection: http.client.HTTPConnection, error: OSError) -> UnavailableError:
    path = connection.path if isinstance(connection, _Uds) else Path()
    if isinstance(error, PermissionError):
        return UnavailableError(
            f"This user may not ask at {path}.",
            code="denied",
            hint=f"{as_owner(path)}, or join the group of the socket.",
        )
    why = "no gateway runs there" if isinstance(error, FileNotFoundError) else str(error)
    return UnavailableError(
        f"Nobody answers at {path}: {why}.",
        code="not_running",
        hint="Start the agent (`edgefleet-agent run`, or its systemd unit), or give the right "
        "--config; `edgefleet-agent status` tells what runs.",
    )


def _lines(answer: dict[str, Any], latency: dict[str, int]) -> list[str]:
    lines = [f"{answer['model_name']} {answer.get('model_version', '')}"]
    for output in answer["outputs"]:
        data = output["data"]
        shown = ", ".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in data[:SHOWN])
        more = f", ... ({len(data)})" if len(data) > SHOWN else ""
        lines.append(f"  {output['name']} {output['datatype']} {output['shape']}: {shown}{more}")
    lines.append(
        f"  {latency['count']} asked, p50 {latency['p50_us']} us, p99 {latency['p99_us']} us"
    )
    return lines

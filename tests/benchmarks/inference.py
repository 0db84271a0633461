"""Latency, rate, memory and overhead of inference, beside raw onnxruntime, FastAPI and MLServer.

A tiny model (64-32-10) and a CNN of 3x224x224 (some 8 ms), the same request from the same client in
C, all in one run and in turns: a machine that is busy with something else is so for all then.
`relay` is the same gateway with lending switched off, `bare_socket` a server that does nothing but
answer, `raw_cnn_100hz` the bare model with a pause after each run.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from edgefleet_agent.ipc import control, fast
from tests.agent.gateways import Gateway, fp32
from tests.benchmarks import idle, load, peer_servers
from tests.models import cnn, mlp, package

PATH = "/v2/models/{}/infer"
VALUES = [round(index / 64, 4) for index in range(64)]
IMAGE = (1, 3, 224, 224)
IMAGE_BYTES = 4 * 3 * 224 * 224
HZ = 10
CORES = len(os.sched_getaffinity(0))


class Case(NamedTuple):
    """Whom to ask, with what, by how many clients."""

    address: str
    request: bytes
    clients: int
    fast: bool = False


def run(*, quick: bool) -> dict[str, Any]:
    """Return medians over rounds in which all take turns, and medians of the rounds' ratios."""
    rounds, seconds = (2, 0.7) if quick else (9, 3.0)
    with tempfile.TemporaryDirectory(prefix="ef") as made, contextlib.ExitStack() as stack:
        folder = Path(made)
        command, language = load.build(folder)
        fast_command = load.build_fast(folder)
        cases, raws, gateway = _set_up(folder, stack)
        found: dict[str, list[dict[str, float]]] = {name: [] for name in (*cases, *raws)}
        for _ in range(rounds):
            for name, case in cases.items():
                client = fast_command if case.fast else command
                clients = load.Clients(client, folder, *case[:3], seconds)
                found[name].append(load.summary(clients.stop(now=False)))
            for name, measure in raws.items():
                found[name].append(measure(seconds))
        overhead = _overhead(gateway, raws["raw_cnn_10hz"], 5.0 if quick else 30.0)
        wrong = sum(int(one.get("failed", 0)) for rows in found.values() for one in rows)
    return {
        **_ratios(found),
        "failed": wrong,
        **overhead,
        "pss_mb": _memory_mb(),
        "load_average": os.getloadavg()[0],
        "client": language,
        "rounds": rounds,
        "seconds_each": seconds,
        **{
            name: {field: median(row[field] for row in rows) for field in rows[0]}
            for name, rows in found.items()
        },
    }


def _set_up(
    folder: Path, stack: contextlib.ExitStack
) -> tuple[dict[str, Case], dict[str, Callable[[float], dict[str, float]]], Gateway]:
    gateway, relay = Gateway(), Gateway("--lend-after", "0")
    for one in (gateway, relay):
        stack.callback(one.close)
        one.control.serve(package(folder, mlp(), name="digits"))
    gateway.control.serve(package(folder, cnn(), name="cnn"))
    tiny, large = folder / "tiny.onnx", folder / "cnn.onnx"
    tiny.write_bytes(mlp())
    large.write_bytes(cnn())
    fastapi = peer_servers.start_fastapi(folder, tiny, stack)
    mlserver = peer_servers.start_mlserver(folder, tiny, stack)
    plain = load.http_request(
        PATH.format("digits"), json.dumps(fp32("x", VALUES, [1, 64])).encode()
    )
    bare = peer_servers.start_bare(folder, len(plain), stack)
    binary = _binary("digits", "x", [1, 64], struct.pack("<64f", *VALUES))
    image = _binary("cnn", "image", list(IMAGE), bytes(IMAGE_BYTES))
    numbers = fast.Tensor("x", "FP32", (1, 64), fast.INLINE, 0, 256)
    frames = load.frame_request("digits", numbers, struct.pack("<64f", *VALUES))
    pixels = fast.Tensor("image", "FP32", IMAGE, 0, 0, IMAGE_BYTES)
    large_frames = load.frame_request("cnn", pixels, bytes(IMAGE_BYTES))
    uds = str(gateway.uds)
    cases = {
        "json_1": Case(uds, plain, 1),
        "relay_json_1": Case(str(relay.uds), plain, 1),
        "fastapi_json_1": Case(fastapi, plain, 1),
        "bare_socket_1": Case(bare, plain, 1),
        "mlserver_json_1": Case(mlserver, plain, 1),
        "tcp_json_1": Case(gateway.address.rpartition(":")[2], plain, 1),
        "binary_1": Case(uds, binary, 1),
        "relay_binary_1": Case(str(relay.uds), binary, 1),
        "json_8": Case(uds, plain, 8),
        "relay_json_8": Case(str(relay.uds), plain, 8),
        "fastapi_json_8": Case(fastapi, plain, 8),
        "mlserver_json_8": Case(mlserver, plain, 8),
        "binary_8": Case(uds, binary, 8),
        "relay_binary_8": Case(str(relay.uds), binary, 8),
        "fast_1": Case(uds, frames, 1, fast=True),
        "cnn_fast_1": Case(uds, large_frames, 1, fast=True),
        "cnn_binary_1": Case(uds, image, 1),
        "cnn_binary_8": Case(uds, image, 8),
    }
    raws: dict[str, Callable[[float], dict[str, float]]] = {
        "raw_tiny": lambda s: _raw(tiny, "x", "1,64", 1, s),
        "raw_cnn": lambda s: _raw(large, "image", "1,3,224,224", 1, s),
        "raw_cnn_cores": lambda s: _raw(large, "image", "1,3,224,224", CORES, s),
        "raw_cnn_100hz": lambda s: _raw(large, "image", "1,3,224,224", 1, s, 100),
        "raw_cnn_10hz": lambda s: _raw(large, "image", "1,3,224,224", 1, s, HZ),
    }
    return cases, raws, gateway


def _binary(model: str, name: str, shape: list[int], data: bytes) -> bytes:
    """Return a request whose tensors are binary, both ways."""
    head = json.dumps({
        "inputs": [{
            "name": name, "datatype": "FP32", "shape": shape,
            "parameters": {"binary_data_size": len(data)},
        }],
        "parameters": {"binary_data_output": True},
    }).encode()  # fmt: skip
    return load.http_request(PATH.format(model), head + data, len(head))


def _raw(
    model: Path, name: str, shape: str, threads: int, seconds: float, hz: float = 0
) -> dict[str, float]:
    script = str(peer_servers.PEERS / "raw_onnxruntime.py")
    command = [sys.executable, script, str(model), name, shape, str(threads), str(seconds), str(hz)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


def _ratios(found: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """Return medians of the rounds' ratios."""

    def ratio(field: str, ours: str, theirs: str) -> float:
        pairs = zip(found[ours], found[theirs], strict=True)
        return round(median(one[field] / other[field] for one, other in pairs), 3)

    return {
        "json_p50_of_fastapi": ratio("p50_us", "json_1", "fastapi_json_1"),
        "binary_p50_of_fastapi": ratio("p50_us", "binary_1", "fastapi_json_1"),
        "bare_socket_p50_of_fastapi": ratio("p50_us", "bare_socket_1", "fastapi_json_1"),
        "json_rps8_of_fastapi": ratio("rps", "json_8", "fastapi_json_8"),
        "binary_rps8_of_fastapi": ratio("rps", "binary_8", "fastapi_json_8"),
        "mlserver_p50_of_json": ratio("p50_us", "mlserver_json_1", "json_1"),
        "json_rps8_of_mlserver": ratio("rps", "json_8", "mlserver_json_8"),
        "lent_p50_of_relay": ratio("p50_us", "json_1", "relay_json_1"),
        "lent_rps8_of_relay": ratio("rps", "json_8", "relay_json_8"),
        "cnn_rps8_of_raw": ratio("rps", "cnn_binary_8", "raw_cnn_cores"),
        "cnn_p50_of_raw": ratio("p50_us", "cnn_binary_1", "raw_cnn"),
        "raw_cnn_100hz_p50_of_raw": ratio("p50_us", "raw_cnn_100hz", "raw_cnn"),
        "cnn_fast_p50_of_raw": ratio("p50_us", "cnn_fast_1", "raw_cnn"),
        "fast_p50_over_raw_us": round(
            median(
                one["p50_us"] - other["p50_us"]
                for one, other in zip(found["fast_1"], found["raw_tiny"], strict=True)
            ),
            1,
        ),
    }


def _overhead(
    gateway: Gateway, raw: Callable[[float], dict[str, float]], seconds: float
) -> dict[str, float]:
    """Ask the CNN ten times a second; compare all our processes with the bare model so asked."""
    (worker,) = [
        one.pid for one in gateway.control.ask(control.Hello).workers if one.model == "cnn"
    ]
    pids = [gateway.process.pid, gateway.zygote(), worker]
    request = _binary("cnn", "image", list(IMAGE), bytes(IMAGE_BYTES))
    head, _, body = request.partition(b"\r\n\r\n")
    length = head.rpartition(b": ")[2].decode()
    bare = raw(seconds)["cpu_percent"]
    connection: http.client.HTTPConnection = gateway.connect()
    begun = time.monotonic()
    before = sum(idle.cpu_s(pid) for pid in pids)
    for count in range(int(seconds * HZ)):
        time.sleep(max(0.0, begun + count / HZ - time.monotonic()))
        headers = {"Inference-Header-Content-Length": length}
        connection.request("POST", PATH.format("cnn"), body, headers)
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise RuntimeError(f"The CNN answered {answer.status}.")
    elapsed = time.monotonic() - begun
    spent = sum(idle.cpu_s(pid) for pid in pids) - before
    connection.close()
    ours = 100 * spent / elapsed
    return {
        "cnn_10hz_cpu_percent": round(ours, 2),
        "cnn_10hz_bare_cpu_percent": bare,
        "cnn_10hz_overhead_percent": round(ours - bare, 2),
    }


def _memory_mb() -> dict[str, float]:
    """Return PSS of agentd and all below it while a tiny model is loaded; it is enrolled and on."""
    found: dict[str, float] = {}
    with idle.serving() as agentd:
        time.sleep(2)
        for pid, name in _family(agentd):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            kb = next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
            found[name] = round(found.get(name, 0) + kb / 1024, 1)
    return {**found, "all": round(sum(found.values()), 1)}


def _family(pid: int) -> list[tuple[int, str]]:
    """Return a process and its descendants with the module that each runs."""
    command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    name = command[command.index(b"-m") + 1].decode() if b"-m" in command else "other"
    tasks = Path(f"/proc/{pid}/task").glob("*/children")  # of each thread: the gateway is one's
    children = [child for task in tasks for child in task.read_text().split()]
    return [(pid, name), *(one for child in children for one in _family(int(child)))]

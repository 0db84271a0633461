"""Swaps under load: nothing may fail, answers must not slow down, memory must come back.

Four clients ask at full speed while the model is swapped to and fro as agentd does it: prove, load,
flip, release the old one. Swaps and times in peace take turns, so that both see the same machine. A
tiny network as ONNX and as TFLite, one in a worker and in a container, a prepared convolutional
one, a drain of it; MLServer in the same run, over TCP.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests import tflite_models
from tests.agent.container_world import Device
from tests.agent.gateways import Gateway, fp32
from tests.benchmarks import load, peer_servers
from tests.benchmarks.swap_subjects import Boxed, InMlServer, Models
from tests.benchmarks.swap_turns import Effort, Subject, measure
from tests.conftest import missing
from tests.dockerd import Dockerd, Image, Registry, server_program
from tests.models import convolutions, linear, mlp, package

FULL = Effort(200, 0.2, settling=50)
QUICK = {
    "tiny": Effort(20, 0.05, 3, 2), "litert": Effort(20, 0.05, 3, 2),
    "container": Effort(4, 0.05, 3, 2), "cnn": Effort(2, 0.05, 6, 2),
    "cnn_drain": Effort(2, 0.05, 6, 2), "mlserver": Effort(20, 0.05, 3, 2),
}  # fmt: skip
"""A network that keeps every core busy leaves a load little time: its swaps are slow."""
CASES = (*QUICK, "mlserver_bump")
"""The last one is of the full run alone."""
CNN_LAYERS = 24
"""Of 2.4 MB each but the first two: 52 MB."""
VALUES = fp32("x", [index / 64 for index in range(64)], [1, 64])


def run(*, quick: bool, cases: Sequence[str] = ()) -> dict[str, Any]:
    """Return the figures, of all cases unless some are named; quick: fewer swaps, less peace."""
    figures: dict[str, Any] = {"load_average": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory(prefix="ef") as name:
        folder = Path(name)
        command, figures["client"] = load.build(folder)
        for case in cases or (QUICK if quick else CASES):
            with ExitStack() as stack:
                effort = QUICK.get(case, FULL) if quick else FULL
                home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ef")))
                if case == "container" and (why := _no_containers()):
                    figures[case] = {"skipped": why, "failed": 0}
                    continue
                subject, request = _subject(case, home, stack)
                figures[case] = measure(subject, command, folder, request, effort)
    ours = {name: part for name, part in figures.items() if not name.startswith("mlserver")}
    figures["failed"] = sum(part["failed"] for part in ours.values() if isinstance(part, dict))
    figures["load_average_end"] = os.getloadavg()[0]
    return figures


def _no_containers() -> str:
    """Say why containers cannot be had here, '' if they can."""
    lacking = missing("dockerd")
    return "needs root" if os.geteuid() else f"needs {', '.join(lacking)}" if lacking else ""


def _subject(case: str, folder: Path, stack: ExitStack) -> tuple[Subject, bytes]:
    if case.startswith("mlserver"):
        return _mlserver(folder, stack, bump=case.endswith("bump"))
    gateway = Gateway()
    stack.callback(gateway.close)
    if case == "container":
        return _boxed(gateway, folder, stack)
    if case.startswith("cnn"):
        content = [convolutions(seed, CNN_LAYERS) for seed in (0, 1)]
        request = load.http_request("/v2/models/m/infer", bytes(3 * 64 * 64 * 4), 0)
    else:
        make = tflite_models.mlp if case == "litert" else mlp
        content, request = [make(seed) for seed in (0, 1)], _numbers("m")
    models = [
        package(folder, one, version=f"{number}.0.0", name="m")
        for number, one in enumerate(content, 1)
    ]
    return Models(gateway, models, folder, drain=case == "cnn_drain"), request


def _numbers(model: str) -> bytes:
    return load.http_request(f"/v2/models/{model}/infer", json.dumps(VALUES).encode())


def _boxed(gateway: Gateway, folder: Path, stack: ExitStack) -> tuple[Subject, bytes]:
    dockerd, registry = Dockerd(), Registry()
    stack.callback(dockerd.close)
    stack.callback(registry.close)
    device = Device(dockerd, "bench")
    stack.callback(device.close)
    image = registry.put(Image(server_program(folder), SCALE=2))
    boxed = device.package(image, concurrency=4)
    plain = package(folder, linear(2.0))
    body = json.dumps(fp32("x", [1, 2, 3, 4], [1, 4])).encode()
    return Boxed(gateway, device, plain, boxed), load.http_request("/v2/models/m/infer", body)


def _mlserver(folder: Path, stack: ExitStack, *, bump: bool) -> tuple[Subject, bytes]:
    models = [folder / f"tiny-{seed}.onnx" for seed in (0, 1)]
    for seed, path in enumerate(models):
        path.write_bytes(mlp(seed))
    server = peer_servers.launch_mlserver(folder, models[0], stack)
    return InMlServer(server, models, bump=bump), _numbers("digits")

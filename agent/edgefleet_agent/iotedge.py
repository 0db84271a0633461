"""The agent as a module of Azure IoT Edge: the deployment manifest that runs it. Pure.

Full, or layered: then it adds the module to whatever other deployments give a device. The twin of
the module is the fleet manager's; a manifest names single keys of it only, by their paths, so that
applying it again wipes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

SYSTEM = "mcr.microsoft.com/azureiotedge"
SYSTEM_VERSION = "1.5"
STATE_DIR, RUN_DIR = "/var/lib/edgefleet", "/run/edgefleet"
OPTIONS_CHARS = 512
"""The twin's limit for each part of a module's create options; there may be eight."""
_SECOND = 1_000_000_000


class Module(NamedTuple):
    """What the module is to have.

    Attributes:
        name: Its id.
        image: Where the runtime pulls it from.
        gpu: All NVIDIA GPUs of the device.
        devices: Paths of device nodes.
        groups: Ids of groups that may open them.
        socket_dir: Volume, or folder of the device, in which other modules find the inference
            socket. A folder must belong to the image's user, 65532.
        state: The same for identity, floors and packages.
        memory_mb: Limit; 0 = none.
        shm_mb: Shared memory, for tensors.
        ticket: Enrolment ticket with which a new device enrols itself; '' = it is enrolled.
        config: Settings that the twin gives.
    """

    name: str
    image: str
    gpu: bool = False
    devices: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    socket_dir: str = "edgefleet-run"
    state: str = "edgefleet-state"
    memory_mb: int = 0
    shm_mb: int = 256
    ticket: str = ""
    config: Mapping[str, Any] | None = None


def manifest(module: Module, *, layered: bool) -> dict[str, Any]:
    """Return the deployment manifest, as `az iot edge` takes it.

    Raises:
        ValueError: The create options are longer than a twin can hold.
    """
    route = f"FROM /messages/modules/{module.name}/* INTO $upstream"
    twin = _twin(module)
    if layered:
        content: dict[str, Any] = {
            "$edgeAgent": {f"properties.desired.modules.{module.name}": _module(module)},
            "$edgeHub": {f"properties.desired.routes.{module.name}": route},
        }
    else:
        content = {
            "$edgeAgent": {"properties.desired": _edge_agent(module)},
            "$edgeHub": {
                "properties.desired": {
                    "schemaVersion": "1.1",
                    "routes": {module.name: route},
                    "storeAndForwardConfiguration": {"timeToLiveSecs": 86_400},
                }
            },
        }
    return {"modulesContent": content | ({module.name: twin} if twin else {})}


def create_options(module: Module) -> dict[str, Any]:
    """Return docker's options for the container."""
    host: dict[str, Any] = {
        "Init": True,  # agentd would be the first process, and reaps only its own children
        "Binds": [f"{module.state}:{STATE_DIR}", f"{module.socket_dir}:{RUN_DIR}"],
        "ShmSize": module.shm_mb * 1024**2,
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}},
    }
    if module.memory_mb:
        host["Memory"] = module.memory_mb * 1024**2
    if module.gpu:
        host["DeviceRequests"] = [{"Driver": "nvidia", "Count": -1, "Capabilities": [["gpu"]]}]
    if module.devices:
        host["Devices"] = [
            {"PathOnHost": path, "PathInContainer": path, "CgroupPermissions": "rw"}
            for path in module.devices
        ]
    if module.groups:
        host["GroupAdd"] = list(module.groups)
    return {
        "HostConfig": host,
        "StopTimeout": 30,
        "Healthcheck": {
            "Test": ["CMD", "edgefleet-agent", "status"],
            "Interval": 30 * _SECOND,
            "Timeout": 10 * _SECOND,
            "StartPeriod": 60 * _SECOND,
            "Retries": 3,
        },
    }


def _twin(module: Module) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if module.ticket:
        found["properties.desired.edgefleet.ticket"] = module.ticket
    if module.config:
        found["properties.desired.edgefleet.config"] = dict(module.config)
    return found


def _module(module: Module) -> dict[str, Any]:
    return {
        "version": "1.0",
        "type": "docker",
        "status": "running",
        "restartPolicy": "always",
        "env": {"EDGEFLEET_AGENT_IOTHUB_AUTH": {"value": "edge"}},
        "settings": {"image": module.image, **_split(create_options(module))},
    }


def _edge_agent(module: Module) -> dict[str, Any]:
    ports = {"5671/tcp": "5671", "8883/tcp": "8883", "443/tcp": "443"}
    hub = {
        "HostConfig": {"PortBindings": {inside: [{"HostPort": p}] for inside, p in ports.items()}}
    }
    return {
        "schemaVersion": "1.1",
        "runtime": {"type": "docker", "settings": {"minDockerVersion": "v1.25"}},
        "systemModules": {
            "edgeAgent": {
                "type": "docker",
                "settings": {"image": f"{SYSTEM}-agent:{SYSTEM_VERSION}", **_split({})},
            },
            "edgeHub": {
                "type": "docker",
                "status": "running",
                "restartPolicy": "always",
                "settings": {"image": f"{SYSTEM}-hub:{SYSTEM_VERSION}", **_split(hub)},
            },
        },
        "modules": {module.name: _module(module)},
    }


def _split(options: dict[str, Any]) -> dict[str, str]:
    """Return create options as the twin holds them: createOptions, createOptions01 and on."""
    text = json.dumps(options, separators=(",", ":"))
    parts = [text[at : at + OPTIONS_CHARS] for at in range(0, len(text), OPTIONS_CHARS)]
    if len(parts) > 8:
        raise ValueError(f"create options of {len(text)} characters")
    return {f"createOptions{i:02}" if i else "createOptions": part for i, part in enumerate(parts)}

"""What a container is created with: every limit that its manifest gives, and no right. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from edgefleet_agent.containers.messages import Wanted
from edgefleet_agent.ipc import dial

LABEL: Final = "io.edgefleet."
"""What every label of ours begins with."""
TMP_SHARE: Final = 4
"""The folder for scratch files may hold this part of the container's memory, to which it
counts."""
OOM_SCORE: Final = 500  # as a worker's: it goes long before agentd does


def labels(fleet: str, device: str, wanted: Wanted, image_id: str) -> dict[str, str]:
    """Return the labels by which a container is found again, and known for what it is."""
    return {
        **owner(fleet, device),
        f"{LABEL}model": wanted.model,
        f"{LABEL}version": wanted.version,
        f"{LABEL}digest": wanted.digest,
        f"{LABEL}settings": fingerprint(wanted, image_id),
        f"{LABEL}folder": wanted.folder,
        f"{LABEL}port": str(wanted.need.container.port),
    }


def owner(fleet: str, device: str) -> dict[str, str]:
    """Return the labels that all containers of a device have."""
    return {f"{LABEL}fleet": fleet, f"{LABEL}device": device}


def fingerprint(wanted: Wanted, image_id: str) -> str:
    """Return a name of all that a container is created with; another one is another container."""
    return hashlib.sha256(msgspec.json.encode([wanted, image_id])).hexdigest()


def name(device: str, digest: str) -> str:
    """Return a container's name; dockerd lets nobody have it twice."""
    return f"edgefleet-{device}-{digest.removeprefix('sha256:')[:12]}"


def creation(wanted: Wanted, image: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `docker.APIClient.create_host_config` for a container.

    Args:
        wanted: What shall run.
        image: What `inspect_image` says of its image.
    """
    memory = wanted.memory_mb * 2**20
    scratch = f"rw,noexec,nosuid,nodev,size={max(memory // TMP_SHARE, 2**20)},mode=1777"
    volumes = (image.get("Config") or {}).get("Volumes") or {}
    return {
        "mem_limit": memory,
        "memswap_limit": memory,  # no swap on top
        "nano_cpus": int(wanted.cpus * 1e9),
        "pids_limit": wanted.need.container.pids,
        "read_only": True,
        # What an image declares a volume would be a folder of the host's disk without a limit.
        "tmpfs": dict.fromkeys(["/tmp", *volumes], scratch),  # noqa: S108 - the container's own
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "oom_score_adj": OOM_SCORE,
        "ipc_mode": "private",
        "privileged": False,
        "restart_policy": {"Name": "no"},  # until it has proved itself
        "log_config": {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "1"}},
    }


def environment(wanted: Wanted) -> dict[str, str]:
    """Return what a container is told: where to listen, what it is called."""
    told = {"EDGEFLEET_MODEL": wanted.need.container.served_as or wanted.model}
    if not wanted.need.container.port:
        told["EDGEFLEET_OIP_SOCKET"] = f"{dial.INSIDE}/{dial.SOCKET}"
    return told


def binds(wanted: Wanted) -> list[tuple[str, str, bool]]:
    """Return what is mounted: path on the host, path in the container, whether read-only."""
    files = [(m.source, f"{dial.FILES_INSIDE}/{m.path}", True) for m in wanted.mounts]
    if wanted.need.container.port:
        return files
    return [(f"{wanted.folder}/{dial.SOCKET_FOLDER}", dial.INSIDE, False), *files]

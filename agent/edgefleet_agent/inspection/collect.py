"""`edgefleet-agent collect`: everything that helps to find a fault, in one archive, and no secret.

A key, a ticket or a blob never goes in: what goes in is listed here by name, not left out by name.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import distributions
from pathlib import Path

import msgspec

from edgefleet_agent import durable
from edgefleet_agent.config import Config
from edgefleet_agent.inspection.output import say, size
from edgefleet_agent.status import read_status
from edgefleet_shared.errors import EdgeFleetError, InvalidInputError

MAX_FILE = 4 * 1024 * 1024
SECRET = re.compile(r"(pin-(?:value|source)=)[^&;?\"\s]*|(://[^/@:\s]*:)[^@/\s]*(?=@)")
STATE_FILES = (
    "journal.json", "locked.json", "desired/accepted.json", "identity/enrollment.json",
    "identity/root.json", "identity/device.crt", "identity/tls.crt", "identity/ca.crt",
    "trust/floors-a.json", "trust/floors-b.json",
)  # fmt: skip
SYSTEM_FILES = (
    "/etc/os-release", "/proc/meminfo", "/proc/cpuinfo", "/proc/loadavg", "/proc/uptime",
    "/proc/version", "/proc/self/mountinfo", "/proc/pressure/memory", "/proc/pressure/io",
)  # fmt: skip
COMMANDS = {
    "log.txt": [
        "journalctl",
        "-u",
        "edgefleet-agent",
        "-n",
        "5000",
        "--no-pager",
        "-o",
        "short-iso",
    ],
    "kernel.txt": ["journalctl", "-k", "-n", "500", "--no-pager", "-o", "short-iso"],
    "disk.txt": ["df", "-kP"],
    "addresses.txt": ["ip", "-brief", "address"],
    "nvidia.txt": ["nvidia-smi"],
}


def register(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument(
        "--output", type=Path, help="the archive (default: edgefleet-DEVICE-TIME.tar.gz here)"
    )


def run(config: Config, options: argparse.Namespace) -> int:
    """Write the archive.

    Raises:
        InvalidInputError: The output is there already, or its folder is not.
        OSError: It cannot be written.
    """
    name = f"edgefleet-{_device(config)}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    output: Path = options.output or Path(f"{name}.tar.gz")
    if output.exists():
        raise InvalidInputError(
            f"{output} is there already.", code="exists", hint="Give another --output."
        )
    if not output.absolute().parent.is_dir():
        raise InvalidInputError(
            f"There is no folder {output.absolute().parent}.",
            code="missing_folder",
            hint="Make it, or give another --output.",
        )
    problems: list[str] = []
    members = {path: data for path, data in _members(config, problems)}  # noqa: C416 - typed
    members["problems.txt"] = "".join(f"{line}\n" for line in problems).encode()
    data = _archive(name, members)
    durable.atomic_write(output.absolute(), data, 0o600)
    text = f"{output}: {len(members)} files, {size(len(data))}; no key, ticket or model is in it."
    shown = {"file": str(output), "bytes": len(data), "members": sorted(members),
             "problems": problems}  # fmt: skip
    say(shown, [text, *(f"  not there: {line}" for line in problems)], as_json=options.json)
    return 0


def _device(config: Config) -> str:
    try:
        data = json.loads((config.state / "identity" / "enrollment.json").read_bytes())
        return re.sub(r"[^A-Za-z0-9._-]", "_", str(data["device"]))[:64]
    except (OSError, ValueError, KeyError):
        return "not-enrolled"


def _members(config: Config, problems: list[str]) -> Iterator[tuple[str, bytes]]:
    def take(name: str, read: Callable[[], bytes]) -> Iterator[tuple[str, bytes]]:
        try:
            data = read()
        except (OSError, ValueError, EdgeFleetError, subprocess.SubprocessError) as error:
            problems.append(f"{name}: {error}")
        else:
            yield name, redact(data)[:MAX_FILE]

    yield from take("config.json", lambda: msgspec.json.encode(config))
    yield from take("status.json", lambda: json.dumps(read_status(config.run), indent=1).encode())
    yield from take("versions.json", _versions)
    yield from take("files.txt", lambda: _listing(config.state))
    for name in STATE_FILES:
        if (config.state / name).exists():
            yield from take(f"state/{name}", (config.state / name).read_bytes)
    for path in sorted((config.state / "trust" / "metadata").glob("*.json")):
        yield from take(f"state/trust/metadata/{path.name}", path.read_bytes)
    for name in SYSTEM_FILES:
        if Path(name).exists():
            yield from take(f"system{name}", Path(name).read_bytes)
    for name, command in COMMANDS.items():
        if shutil.which(command[0]):
            yield from take(f"system/{name}", lambda command=command: _output(command))  # type: ignore[misc]


def redact(data: bytes) -> bytes:
    """Return text without token PINs and passwords in URLs."""
    text = data.decode("utf-8", "surrogateescape")
    text = SECRET.sub(lambda m: f"{m[1] or m[2]}***", text)
    return text.encode("utf-8", "surrogateescape")


def _versions() -> bytes:
    found = {d.metadata["Name"]: d.version for d in distributions()}
    facts = {
        "python": sys.version, "machine": platform.machine(), "kernel": platform.release(),
        "cores": os.cpu_count(), "distributions": dict(sorted(found.items())),
    }  # fmt: skip
    return json.dumps(facts, indent=1).encode()


def _listing(state: Path) -> bytes:
    """Return every file's mode, size and time; names alone, also of keys."""
    lines = []
    for path in sorted(state.rglob("*")):
        try:
            status = path.lstat()
        except OSError:
            continue
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(status.st_mtime))
        lines.append(f"{status.st_mode:06o} {status.st_size:12} {when} {path.relative_to(state)}")
    return "\n".join(lines).encode("utf-8", "surrogateescape")


def _output(command: list[str]) -> bytes:
    done = subprocess.run(command, capture_output=True, timeout=20, check=False)
    return done.stdout + done.stderr


def _archive(folder: str, members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in sorted(members.items()):
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size, info.mode, info.mtime = len(data), 0o600, int(time.time())
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()

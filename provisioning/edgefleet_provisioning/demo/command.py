"""The `edgefleet demo` command."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.table import Table

from edgefleet_provisioning.commands.session import JsonOption
from edgefleet_provisioning.demo.hub import IOTHUB, MQTT, Transport
from edgefleet_provisioning.demo.narrator import Narrator
from edgefleet_provisioning.demo.processes import PIDS, is_running
from edgefleet_shared.errors import EdgeFleetError, InvalidInputError

KEPT = Path("edgefleet-demo")
WHY = {
    "nonfinite": "it answered NaN",
    "latency": "it was too slow",
    "error_rate": "it failed requests",
    "crashes": "it crashed",
}
NEEDED = ("edgefleet_agent", "edgefleet_cloud", "onnxruntime", "skl2onnx", "sklearn")
NEEDED_BY_HUB = ("azure.iot.device", "azure.eventhub", "starlette")


def demo(
    devices: Annotated[int, typer.Option(min=2, max=32, help="How many agents to start.")] = 3,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the fleet running; print how to reach it.")
    ] = False,
    stop: Annotated[
        bool, typer.Option("--stop", help="End a fleet that --keep left running.")
    ] = False,
    transport: Annotated[
        Transport,
        typer.Option(
            help="How devices connect; iothub: to a hub on this machine as Azure has them."
        ),
    ] = MQTT,
    as_json: JsonOption = False,
) -> None:
    """Watch three model versions travel from training to inference and back, on real parts."""
    if stop:
        _stop_kept(KEPT)
        return
    _check_installed(transport)
    narrator = Narrator(to_stderr=as_json)
    signal.signal(signal.SIGTERM, _interrupt)
    done = False
    # Imported late: training needs half a second of imports that no other command should pay.
    from edgefleet_provisioning.demo.fleet import Fleet
    from edgefleet_provisioning.demo.story import Story

    folder = _make_folder(keep=keep)
    fleet = Fleet(folder, devices, narrator, transport)
    story = Story(fleet, narrator)
    narrator.note(
        f"A fleet manager, a broker and {devices} devices, all real, on this machine. It takes "
        "about half a minute; Ctrl-C ends it and leaves nothing behind."
    )
    try:
        result = story.tell()
        done = True
    except KeyboardInterrupt:
        narrator.note("Interrupted: everything is ended and removed.")
        raise
    except Exception:
        narrator.note(f"It failed; the logs of every part are in {_save_logs(folder)}.")
        raise
    finally:
        story.stop_listening()
        if not (keep and done):
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C leaves no half of it
            fleet.close()
            shutil.rmtree(folder, ignore_errors=True)
    _show(narrator, result)
    if keep:
        _explain(narrator, fleet)
    if as_json:
        typer.echo(json.dumps(result, separators=(",", ":")))


def _check_installed(transport: str) -> None:
    needed = [*NEEDED, *(NEEDED_BY_HUB if transport == IOTHUB else ())]
    missing = [name for name in needed if not _is_installed(name)]
    if missing:
        raise InvalidInputError(
            f"The demo needs {', '.join(missing)}, which is not installed.",
            code="demo_incomplete",
            hint="Install edgefleet with its extra: pip install 'edgefleet[demo]'.",
        )


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # not even the package that it would be in
        return False


def _make_folder(*, keep: bool) -> Path:
    """Return the demo's folder; short, because a Unix socket's path holds 107 bytes."""
    if not keep:
        return Path(tempfile.mkdtemp(prefix="edgefleet-"))
    folder = KEPT.resolve()
    if folder.exists():
        raise InvalidInputError(
            f"{folder} exists: an earlier demo was kept.",
            code="exists",
            hint="End it with `edgefleet demo --stop`, then try again.",
        )
    if len(str(folder)) > 70:
        raise InvalidInputError(
            f"{folder} is too long a path for Unix sockets.",
            code="path_too_long",
            hint="Change to a folder with a shorter path and try again.",
        )
    folder.mkdir()
    return folder


def _save_logs(folder: Path) -> Path:
    """Return where the logs stay when the demo's own folder is removed."""
    kept = Path(tempfile.mkdtemp(prefix="edgefleet-logs-"))
    shutil.copytree(folder / "logs", kept, dirs_exist_ok=True)
    return kept


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _show(narrator: Narrator, result: dict[str, Any]) -> None:
    narrator.chapter("What happened")
    table = Table()
    for column in ("rollout", "state", "succeeded", "rolled back", "untouched", "seconds"):
        table.add_column(column)
    for rollout in result["rollouts"]:
        table.add_row(
            f"{rollout['model']} {rollout['version']}",
            rollout["state"],
            *(
                str(rollout[key])
                for key in (
                    "devices_succeeded", "devices_rolled_back", "devices_untouched", "seconds",
                )
            ),
        )  # fmt: skip
    narrator.table(table)
    asked, swap, back = result["inference"], result["swap"], result["rollback"]
    narrator.note(
        f"{asked['requests']} requests, {asked['failed']} failed; accuracy on held-out digits "
        f"{asked['accuracy_1']} -> {asked['accuracy_2']}.\n"
        f"Swap 1.0.0 -> 2.0.0 under load: {swap['failed']} of {swap['requests']} failed, p99 "
        f"{swap['p99_ms_before']} -> {swap['p99_ms_during']} ms, longest gap "
        f"{swap['longest_gap_ms']} ms.\n"
        f"{back['from']} was sent back to {back['to']} by the device itself after "
        f"{back['seconds']} s, because {WHY.get(back['trigger'], back['trigger'])}. "
        f"Whole story: {result['seconds']} s."
    )


def _explain(narrator: Narrator, fleet: Any) -> None:
    activate = Path(sys.prefix, "bin", "activate")
    name = fleet.names[0]
    narrator.note(
        f"\nThe fleet runs on in {fleet.folder}:\n"
        f"  API     {fleet.ready['api']}/v1   (token: fleet/online/admin.token)\n"
        f"  broker  {fleet.ready['broker']}\n"
        + "".join(f"  {n:<7} http://{fleet.infer_address(n)}/v2\n" for n in fleet.names)
        + "Try next:\n"
        + (f"  . {activate}\n" if activate.exists() else "")
        + f"  export EDGEFLEET_FLEET={fleet.folder / 'fleet'}\n"
        "  edgefleet status\n"
        "  edgefleet events --follow\n"
        f"  edgefleet device history {name}\n"
        f"  curl http://{fleet.infer_address(name)}/v2/models/digits\n"
        "  edgefleet demo --stop    (in this folder; it removes its files too)"
    )


def _stop_kept(folder: Path) -> None:
    """End what `--keep` left, agents before the fleet manager, and remove its folder."""
    folder = folder.resolve()
    if not (folder / "logs").is_dir():
        raise InvalidInputError(
            f"No kept demo in {folder}.",
            code="not_found",
            hint="Run `edgefleet demo --stop` where `edgefleet demo --keep` was run.",
        )
    pids: dict[str, int] = {}
    with contextlib.suppress(FileNotFoundError):  # it was killed before it began anything
        pids = json.loads((folder / PIDS).read_text())
    ours = [pid for pid in reversed(pids.values()) if is_running(pid, folder)]
    for pid in ours:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 15.0
    while any(is_running(pid, folder) for pid in ours):
        if time.monotonic() > deadline:
            raise EdgeFleetError(
                f"Some of {ours} do not end.", code="demo_process", hint="End them by hand."
            )
        time.sleep(0.05)
    shutil.rmtree(folder)
    sys.stdout.write(f"Ended {', '.join(pids) or 'nothing'}; removed {folder}.\n")

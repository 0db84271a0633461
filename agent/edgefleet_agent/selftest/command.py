"""The command itself: what is tried in which order, and where the report goes."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from edgefleet_agent import __version__, compose
from edgefleet_agent.config import Config
from edgefleet_agent.ipc.control import ModelSpec
from edgefleet_agent.ports import DeviceReport
from edgefleet_agent.selftest import machine, serving
from edgefleet_agent.selftest.bench import Bench, run_folder
from edgefleet_agent.selftest.fpga import Cycle
from edgefleet_agent.selftest.report import Report, Row, table
from edgefleet_shared.errors import (
    EdgeFleetError,
    IncompatibleError,
    InvalidInputError,
    UnavailableError,
)


def main(config: Config, options: argparse.Namespace) -> int:
    """Run it and print what was found; returns 0 if nothing failed.

    Raises:
        InvalidInputError: An accelerator that nobody knows was asked for, or a folder is not there.
    """
    _check(options.output, options.package)
    report = run(config, options.accelerator, options.package)
    data = msgspec.json.encode(report)
    if options.output:
        options.output.write_bytes(msgspec.json.format(data, indent=1) + b"\n")
    passed = report.passed(options.accelerator)
    sys.stdout.write((data.decode() if options.json else table(report)) + "\n")
    if not passed and not report.failed():
        sys.stderr.write(f"edgefleet-agent: {options.accelerator} was asked for and is absent.\n")
    return 0 if passed else 1


def _check(output: Path | None, package: Path | None) -> None:
    """Refuse what cannot work before minutes go into it."""
    for option, folder in (
        ("--package", package),
        ("--output", output.absolute().parent if output else None),
    ):
        if folder and not folder.is_dir():
            raise InvalidInputError(
                f"There is no folder {folder}.", code="missing_folder", hint=f"Check {option}."
            )


def run(config: Config, only: str = "", package: Path | None = None) -> Report:
    """Return the report of this machine.

    Args:
        config: The agent's configuration; its own folders are not touched.
        only: One kind of accelerator, '' = all of them.
        package: Folder of a package for the FPGA's cycle.
    """
    offloads = compose.offloads_of(config)
    found = {report.kind: report for report in compose.probe_all(config, offloads)}
    if only and only not in found:
        raise InvalidInputError(
            f"There is no accelerator {only!r}.",
            code="usage",
            hint=f"Known are {', '.join(sorted(found))}.",
        )
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    facts = machine.facts(config.hardware_id)

    def place(spec: ModelSpec) -> ModelSpec:
        offload = offloads.get(spec.accelerator)
        if offload is None:
            return spec
        try:
            chosen = {name: dict(value) for name, value in offload.providers(spec).items()}
        except IncompatibleError:
            return spec  # the worker says it
        return msgspec.structs.replace(spec, placement=chosen)

    tried = {kind: report for kind, report in found.items() if only in {"", kind}}
    rows = list(_rows(config, tried, package, place))
    return Report(f"edgefleet-agent {__version__}", started, facts, rows)


def _rows(
    config: Config, found: dict[str, DeviceReport], package: Path | None, place: serving.Place
) -> Iterator[Row]:
    yield machine.memory()
    yield machine.clock()
    yield machine.disk(config.state)
    for kind, report in found.items():
        yield _accelerator(kind, report)
    kinds = [kind for kind, report in found.items() if report.usable and kind != "fpga"]
    folder = run_folder()
    own = msgspec.structs.replace(
        config, run_dir=str(folder), state_dir=str(folder),
        inference=msgspec.structs.replace(config.inference, tcp=""),
    )  # fmt: skip
    try:
        command, environ = (
            compose.command_of_gateway(own),
            compose.environ_of_gateway(own, os.environ),
        )
        with Bench(command, environ, folder) as bench:
            yield serving.sandbox(bench, folder)
            yield from serving.try_all(bench, folder, kinds, place)
            if "fpga" in found:
                yield Cycle(config, bench, found["fpga"], package).row()
    except UnavailableError as error:
        yield Row("gateway", "start", "failed", str(error))
    except EdgeFleetError as error:
        yield Row("selftest", "run", "failed", str(error))
    finally:
        with suppress(OSError):
            shutil.rmtree(folder)


def _accelerator(kind: str, report: DeviceReport) -> Row:
    if not report.usable:
        return Row("accelerator", kind, "absent", report.why_not)
    figures: dict[str, Any] = {"device": report.name}
    if report.driver:
        figures["driver"] = report.driver
    if report.memory_mb:
        figures["memory_mb"] = report.memory_mb
    return Row("accelerator", kind, "passed", "", figures | dict(report.detail))

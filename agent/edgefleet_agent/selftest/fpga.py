"""The FPGA's cycle with a package of the user's: reserve, program, prove, serve, unload."""

from __future__ import annotations

import json
import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from edgefleet_agent import compose, durable
from edgefleet_agent.config import Config
from edgefleet_agent.ports import DeviceReport
from edgefleet_agent.selftest.bench import Bench
from edgefleet_agent.selftest.report import Row
from edgefleet_agent.store import hash_fd
from edgefleet_agent.toolbox import model_spec
from edgefleet_shared.errors import EdgeFleetError, InvalidInputError
from edgefleet_shared.identifiers import sha256_digest
from edgefleet_shared.package import decode_manifest


class Cycle:
    """One turn of one package through a slot.

    Args:
        config: The agent's own; it must not run meanwhile, or both would program.
        bench: A gateway.
        report: What probing found.
        package: An OCI image layout with a variant for this FPGA; None: there is none.
    """

    def __init__(
        self, config: Config, bench: Bench, report: DeviceReport, package: Path | None
    ) -> None:
        self._config, self._bench = config, bench
        self._report, self._package = report, package

    def row(self) -> Row:
        """Return what was found."""
        if not self._report.usable:
            return Row("fpga", "cycle", "absent", self._report.why_not)
        if self._package is None:
            why = "no bitstream fits every board: give yours with --package"
            return Row("fpga", "cycle", "absent", why)
        figures: dict[str, Any] = {}
        try:
            self._turn(self._package, figures)
        except EdgeFleetError as error:
            return Row("fpga", "cycle", "failed", f"{error.code}: {error}", figures)
        return Row("fpga", "cycle", "passed", "", figures)

    def _turn(self, folder: Path, figures: dict[str, Any]) -> None:
        data = _manifest(folder)
        manifest = decode_manifest(data)
        fits = [v for v in manifest.variants if v.accelerator == "fpga"]
        if not fits:
            raise InvalidInputError(
                f"{folder} holds no FPGA variant.", code="no_compatible_variant"
            )
        spec = model_spec(manifest, fits[0], sha256_digest(data), 1)
        with ExitStack() as stack:
            stack.enter_context(compose.lock(durable.make_folder(self._config.state)))
            fpga = compose.fpga(self._config)
            if why_not := fpga.compatible(spec):
                raise InvalidInputError(why_not, code="unsupported_accelerator")
            files = []
            for entry in spec.files:
                files.append(_open(folder, entry.digest))
                stack.callback(os.close, files[-1])
            slot = fpga.reserve(spec)
            stack.callback(fpga.release, slot)
            begun = time.monotonic()
            fpga.program(slot, spec, files)
            figures |= {"slot": slot, "program_ms": round(1000 * (time.monotonic() - begun))}
            windows = fpga.open(slot, spec)
            for fd in windows:
                stack.callback(os.close, fd)
            outcome = self._bench.client.prove(spec, [*files, *windows])
            if not outcome.ok:
                raise InvalidInputError(outcome.message, code=outcome.code)
            figures |= {
                "load_ms": outcome.load_ms, "golden_ms": outcome.golden_ms,
                "cases": spec.golden.cases if spec.golden else 0,
            }  # fmt: skip
        figures["state_after"] = fpga.state(slot)


def _manifest(folder: Path) -> bytes:
    """Return the bytes of the package manifest in an OCI image layout: its image's config.

    Raises:
        InvalidInputError: There is none.
    """
    try:
        index = json.loads((folder / "index.json").read_bytes())
        image = json.loads(_read(folder, index["manifests"][0]["digest"]))
        return _read(folder, image["config"]["digest"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InvalidInputError(
            f"{folder} holds no package: {error}.",
            code="usage",
            hint="Make one with `edgefleet model publish ... --output FOLDER`.",
        ) from error


def _read(folder: Path, digest: str) -> bytes:
    with os.fdopen(_open(folder, digest), "rb") as file:
        return file.read()


def _open(folder: Path, digest: str) -> int:
    path = folder / "blobs/sha256" / digest.removeprefix("sha256:")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidInputError(f"{path}: {error.strerror}.", code="blob_missing") from error
    if hash_fd(fd) != digest:
        os.close(fd)
        raise InvalidInputError(f"{path} has other bytes than its name says.", code="blob_corrupt")
    return fd

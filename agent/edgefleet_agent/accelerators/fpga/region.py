"""agentd's side of an FPGA: reserve a slot, place what was signed, program it, open its window."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from edgefleet_agent.accelerators.fpga import firmware
from edgefleet_agent.accelerators.fpga.book import Book, Holding, Phase, boot_id
from edgefleet_agent.accelerators.fpga.states import ProgramError
from edgefleet_agent.accelerators.fpga.ways import WAYS, Programmer, job_for, name_of, places_of
from edgefleet_agent.config import FpgaOptions
from edgefleet_agent.errors import NeedsDrainError
from edgefleet_agent.ipc.control import ModelSpec
from edgefleet_agent.ports import DeviceReport

_POLL_S: Final = 0.02
_BOARD: Final = "firmware/devicetree/base/compatible"


class Region:
    """One FPGA. May be called from any thread; it does one thing at a time.

    Args:
        options: The table `fpga` of agent.toml.
        state: Where the book of slots is kept.
        boot: The kernel's boot id.
    """

    kind = "fpga"

    def __init__(self, options: FpgaOptions, state: Path, boot: str | None = None) -> None:
        self._options = options
        self._firmware = Path(options.firmware)
        self._book_path = state / "fpga.json"
        self._boot = boot_id() if boot is None else boot
        self._book: Book | None = None
        self._lock = threading.RLock()
        self._held: list[str] = []

    # ------------------------------------------------------------------- what is there

    def probe(self) -> DeviceReport:
        """Look for the FPGA manager and the ways to program it; never raises."""
        found, lacking = self._ways()
        if not found:
            return DeviceReport(
                name="", kind=self.kind, usable=False, why_not=f"unavailable: {lacking}."
            )
        way = found[0]
        try:
            detail = {
                "slots": way.slots(), "state": way.state(), "ways": [w.name for w in found],
                "held": {slot: h.digest for slot, h in self._open_book().slots.items()},
            }  # fmt: skip
        except Exception as error:  # noqa: BLE001 - a probe tells and never raises
            return DeviceReport(name="", kind=self.kind, usable=False, why_not=f"{error}")
        return DeviceReport(
            name=self._options.board or way.describe() or way.name,
            kind=self.kind,
            usable=True,
            driver=way.name,
            detail=detail,
        )

    def compatible(self, spec: ModelSpec) -> str:
        """Return '' if the variant was built for this board and static design."""
        said = spec.fpga
        name = f"{spec.model} {spec.version}"
        if spec.accelerator != self.kind or said is None:
            return f"{name} is built for {spec.accelerator!r}, this is an FPGA."
        boards = self._boards()
        if said.board and said.board not in boards:
            return f"{name} is built for {said.board!r}, this is {', '.join(boards) or 'unknown'}."
        shell = self._options.shell.replace("-", "").lower()
        if said.parent and shell and said.parent.replace("-", "").lower() != shell:
            return f"{name} is built on the static design {said.parent}, loaded is {shell}."
        if said.fingerprint and said.fingerprint != self._options.fingerprint:
            return (
                f"{name} is compiled for the DPU {said.fingerprint}, and fpga.fingerprint is "
                f"{self._options.fingerprint or 'empty'}."
            )
        if said.slots:
            found, lacking = self._ways()
            if not any(not way.cannot(job_for(way, spec, 0)) for way in found):
                why = "; ".join(f"{way.name}: {way.cannot(job_for(way, spec, 0))}" for way in found)
                return f"Nothing here can program {name}: {why or lacking}."
        return ""

    def providers(self, spec: ModelSpec) -> Mapping[str, Mapping[str, str]]:
        """Return nothing: agentd opens no model."""
        del spec
        return {}

    # ------------------------------------------------------------------- a slot's life

    def prepare(self, spec: ModelSpec, files: Sequence[int], targets: Sequence[int]) -> bool:
        """Return False: a core comes as its publisher has built it."""
        del spec, files, targets
        return False

    def reserve(self, spec: ModelSpec) -> str:
        """Return a slot for `spec`: the one that it has, or a free one.

        Raises:
            NeedsDrainError: Every slot is held; `holders` says by whom.
            ProgramError: Nothing here can program it.
        """
        assert spec.fpga is not None
        if not spec.fpga.slots:
            return ""  # a model for a DPU that stays
        with self._lock:
            held = self._open_book().slots
            for slot, holding in held.items():
                if holding.digest == spec.digest:
                    return slot
            count = min(self._way(spec).slots(), len(spec.fpga.slots)) if spec.fpga.partial else 1
            free = next((n for n in range(count) if str(n) not in held), None)
            alone = not spec.fpga.partial or any(holding.whole for holding in held.values())
            if free is None or (alone and held):
                holders = tuple(holding.digest for holding in held.values())
                raise NeedsDrainError(
                    f"The FPGA has {count} slots, held by {', '.join(holders)}.", holders
                )
            self._write(str(free), spec, "reserved")
            return str(free)

    def program(self, slot: str, spec: ModelSpec, files: Sequence[int]) -> None:
        """Bring a reserved slot to what `spec` needs; at once where it holds that already.

        Raises:
            ProgramError: It failed; the slot is in error and free for another try.
            TrustError: The bytes are no longer those that were signed.
            IncompatibleError: A header is not what its name says.
        """
        assert spec.fpga is not None
        if not spec.fpga.slots:
            return
        with self._lock:
            way = self._way(spec)
            holding = self._open_book().slots[slot]
            if holding.phase == "operating" and self._still_holds(way, holding):
                return
            job = job_for(way, spec, int(slot))
            by_path = {e.path: (e, fd) for e, fd in zip(spec.files, files, strict=False)}
            firmware.lint(spec.fpga, by_path)
            places = places_of(way, job, by_path)
            firmware.check_free(self._firmware, places, self._book_of().places())
            self._write(slot, spec, "programming", sorted(places))
            firmware.place(self._firmware, places)
            try:
                hardware = way.load(job)
            except ProgramError:
                self._write(slot, spec, "error", sorted(places))
                raise
            self._write(slot, spec, "operating", sorted(places), hardware)

    def open(self, slot: str, spec: ModelSpec) -> list[int]:
        """Return the descriptor of the slot's register window, or none where there is none.

        Raises:
            ProgramError: It has not appeared.
        """
        assert spec.fpga is not None
        if spec.fpga.registers is None:
            return []
        holding = self._open_book().slots[slot]
        files = spec.fpga.slots[min(holding.hardware, len(spec.fpga.slots) - 1)]
        deadline = time.monotonic() + self._options.timeout_s
        while (path := self._window(files.window, spec.fpga.registers.size)) is None:
            if time.monotonic() > deadline:
                raise ProgramError(
                    f"No register window {files.window!r} of {spec.fpga.registers.size} bytes has "
                    f"appeared in {self._options.sysfs}/class/uio.",
                    code="fpga_window",
                    hint="The overlay must bind the core to uio_pdrv_genirq or generic-uio.",
                )
            time.sleep(_POLL_S)
        try:
            return [os.open(path, os.O_RDWR | os.O_SYNC | os.O_CLOEXEC)]
        except OSError as error:
            raise ProgramError(
                f"{path} cannot be opened: {error.strerror or error}.", code="fpga_window"
            ) from error

    def release(self, slot: str) -> None:
        """Unload a slot and give it back; nothing happens where it is free.

        Raises:
            ProgramError: It cannot be unloaded; it stays held.
        """
        with self._lock:
            holding = self._open_book().slots.get(slot)
            if holding is None:
                return
            self._book_of().write(slot, replace(holding, phase="unloading"))
            for way in self._ways()[0]:
                way.unload(holding.name, holding.hardware)
            firmware.remove(self._firmware, holding.placed)
            self._book_of().write(slot, None)

    @contextmanager
    def held(self, spec: ModelSpec) -> Iterator[None]:
        """Keep the slot of `spec` from being taken by `retain`."""
        with self._lock:
            self._held.append(spec.digest)
        try:
            yield
        finally:
            with self._lock:
                self._held.remove(spec.digest)

    def retain(self, digests: set[str]) -> list[str]:
        """Release every slot whose package is neither among `digests` nor held; return whose."""
        with self._lock:
            gone = [
                (slot, holding.digest)
                for slot, holding in self._open_book().slots.items()
                if holding.digest not in {*digests, *self._held}
            ]
            for slot, _ in gone:
                self.release(slot)
            return [digest for _, digest in gone]

    def state(self, slot: str) -> str:
        """Return `free`, `reserved`, `programming`, `operating` or `error`."""
        holding = self._open_book().slots.get(slot)
        if holding is None:
            return "free"
        return "programming" if holding.phase == "unloading" else holding.phase

    def ready(self, spec: ModelSpec) -> bool:
        """Return whether a slot is programmed with `spec` just now."""
        if spec.fpga is None or not spec.fpga.slots:
            return True
        with self._lock:
            held = self._open_book().slots.values()
            holding = next((h for h in held if h.digest == spec.digest), None)
            if holding is None or holding.phase != "operating":
                return False
            return self._still_holds(self._way(spec), holding)

    # ------------------------------------------------------------------- inside

    def _ways(self) -> tuple[list[Programmer], str]:
        """Return the ways that are here, and in words why the others are not."""
        wanted = self._options.strategy
        if wanted == "none":
            return [], "fpga.strategy is 'none'"
        names = list(WAYS) if wanted == "auto" else [wanted]
        found: list[Programmer] = []
        lacking: list[str] = []
        for name in names:
            way = WAYS[name](self._options)
            if why := way.why_not():
                lacking.append(why)
            else:
                found.append(way)
        return found, "; ".join(dict.fromkeys(lacking))

    def _way(self, spec: ModelSpec) -> Programmer:
        found, lacking = self._ways()
        for way in found:
            if not way.cannot(job_for(way, spec, 0)):
                return way
        raise ProgramError(f"Nothing here can program {spec.model}: {lacking or 'no way fits'}.")

    def _open_book(self) -> Book:
        with self._lock:
            if self._book is None:
                book = Book(self._book_path, self._boot)
                for holding in book.stale:
                    firmware.remove(self._firmware, holding.placed)
                for slot, holding in book.slots.items():
                    if holding.phase == "reserved":
                        book.write(slot, None)  # nothing was done for it yet
                self._book = book
            return self._book

    def _book_of(self) -> Book:
        assert self._book is not None
        return self._book

    def _write(
        self,
        slot: str,
        spec: ModelSpec,
        phase: Phase,
        placed: Sequence[str] = (),
        hardware: int | None = None,
    ) -> None:
        number = int(slot) if hardware is None else hardware
        name = name_of(spec)
        whole = spec.fpga is not None and not spec.fpga.partial
        self._book_of().write(slot, Holding(spec.digest, name, phase, number, list(placed), whole))

    def _still_holds(self, way: Programmer, holding: Holding) -> bool:
        loaded = way.loaded()
        return way.state() == "operating" and (loaded is None or holding.name in loaded)

    def _boards(self) -> list[str]:
        if self._options.board:
            return [self._options.board]
        try:
            raw = Path(self._options.sysfs, _BOARD).read_bytes()
        except OSError:
            return []
        return [part.decode("ascii", "replace") for part in raw.split(b"\0") if part]

    def _window(self, name: str, size: int) -> Path | None:
        for folder in sorted(Path(self._options.sysfs, "class/uio").glob("uio*")):
            try:
                found = (folder / "name").read_text().strip()
                length = int((folder / "maps/map0/size").read_text(), 16)
                begin = int((folder / "maps/map0/offset").read_text(), 16)
            except (OSError, ValueError):
                continue
            if found == name and length >= size and not begin:
                return Path(self._options.dev, folder.name)
        return None

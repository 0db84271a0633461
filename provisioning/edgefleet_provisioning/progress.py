"""How far an upload has come: a bar on a terminal, a line a file elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TransferSpeedColumn,
)

from edgefleet_provisioning.output import clean


class UploadProgress:
    """A context manager; `tell` has the shape of `publishing.Report`.

    Args:
        console: Where to write.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def tell(self, path: str, done: int, size: int) -> None:
        """Say that the server has `done` of `size` bytes of a file."""
        first = path not in self._bars
        if first:
            # What the server had before counts as done, not as speed.
            self._bars[path] = self._progress.add_task(escape(clean(path)), total=size)
        self._progress.update(self._bars[path], completed=done)
        if self._console.is_terminal:
            return
        if first and 0 < done < size:
            self._console.print(f"{escape(clean(path))}: goes on at byte {done} of {size}")
        if done == size:
            known = " (the server had it)" if first else ""
            self._console.print(f"{escape(clean(path))}: {size} bytes{known}")

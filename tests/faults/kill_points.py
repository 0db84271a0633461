"""Kill a device at every fsync, rename, unlink and link of an update, and look at what is left.

`python -m tests.faults.kill_points [CALL [FIRST [LAST]]]` does it for every one and counts them.
`strace` sends SIGKILL as the Nth such call begins, so that it is not made any more; it counts by
name and by thread. After it, every file that was written and never fsynced is emptied, or cut to
what it held before the update: a page cache survives a kill and not a power cut.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

from tests.faults.power_cut import Course

CALLS = ("fsync", "rename", "unlink", "link")
_WATCHED = "openat,write,pwrite64,fsync,fdatasync,ftruncate,rename,unlink,link"
_LINE = re.compile(
    r"^(\d+) +(\w+)\((?:\d+<([^>]*)>|(?:AT_FDCWD, )?\"([^\"]*)\")(?:, \"([^\"]*)\")?"
)


class KillCourse(Course):
    """A course whose device is killed by strace at a call of a name.

    Attributes:
        at: Name of the call, and which one of it.
    """

    def _prepare(self) -> None:
        self.at = ""
        self._trace = self.device.folder / "trace"

    def _start(self, at: int) -> None:
        self._trace.unlink(missing_ok=True)
        command = ["strace", "-f", "-qq", "-y", "-o", str(self._trace), "-e", f"trace={_WATCHED}"]
        if at:
            command += ["-e", f"inject={self.at}:signal=KILL:when={at}"]
        self.device.start(*command)

    def kill(self, call: str, number: int, *, gateway_too: bool) -> bool:
        """Kill at the Nth call of a name; return whether the process got that far."""
        self.at = call
        return self.cut(number, gateway_too=gateway_too)

    def points(self) -> Counter[str]:
        """Perform the whole update undisturbed; return how often each call can be the last.

        That is the most that one thread makes of it: strace counts each thread by itself.
        """
        self.whole()
        found: Counter[tuple[str, str]] = Counter(
            (call, thread) for thread, call, *_ in self._calls() if call in CALLS
        )
        most: Counter[str] = Counter()
        for (call, _), number in found.items():
            most[call] = max(most[call], number)
        return most

    def calls(self) -> list[str]:
        """Return the calls of the last run that changed the disk, by name and path."""
        root = str(self.device.state)
        return [f"{call} {path}" for _, call, path, _ in self._calls() if path.startswith(root)]

    def _calls(self) -> list[tuple[str, str, str, str]]:
        """Return thread, call, path and second path of every call that was traced and made."""
        lines = self._trace.read_text(errors="replace").splitlines() if self._trace.exists() else []
        found, begun = [], dict[str, re.Match[str]]()
        for line in lines:
            thread = line.split(" ", 1)[0]
            match = _LINE.match(line)
            if match is not None and line.endswith("<unfinished ...>"):
                begun[thread] = match  # another thread's call is written between
                continue
            if match is None and "resumed>" in line:
                match = begun.pop(thread, None)
            # What ends so was cut off as it began, unless it wrote: that may be there in part.
            if match is not None and (not line.rstrip().endswith("= ?") or "write" in match[2]):
                found.append((match[1], match[2], match[3] or match[4] or "", match[5] or ""))
        return found

    def unsafe(self) -> set[Path]:
        """Return the files that were written and never fsynced, by the name they have now.

        What was fsynced and written again keeps more than nothing; `crash.c` cuts it to the byte.
        """
        dirty, safe = set[str](), set[str]()
        for _, call, path, other in self._calls():
            if call in {"write", "pwrite64"} and path not in safe:
                dirty.add(path)
            elif call in {"fsync", "fdatasync"}:
                dirty.discard(path)
                safe.add(path)
            elif call == "unlink":
                dirty.discard(path)
                safe.discard(path)
            elif call == "rename" and path in dirty:
                dirty.remove(path)
                dirty.add(other)
        root = str(self.device.state)
        return {Path(path) for path in dirty if path.startswith(root) and "-shm" not in path}

    def _lose(self) -> None:
        template = self.device.folder / "template"
        for path in self.unsafe():
            if not path.is_file():
                continue
            before = template / path.relative_to(self.device.state)
            kept = before.stat().st_size if before.is_file() else 0
            if path.stat().st_size > kept:
                with path.open("r+b") as file:
                    file.truncate(kept)


def main() -> int:
    """Kill at every call, or at those of one name that the command line gives."""
    names = sys.argv[1:2] or list(CALLS)
    given = [int(text) for text in sys.argv[2:4]]
    first, last = given + [1, 0][len(given) :]
    course = KillCourse()
    hit = Counter[str]()
    try:
        points = course.points()
        for call in names:
            for number in range(first, (last or points[call]) + 1):
                done = course.kill(call, number, gateway_too=bool(number % 2))
                hit[call] += done
                emptied = len(course.unsafe())
                print(call, number, "killed" if done else "never came", emptied, flush=True)
        text = ", ".join(f"{call} {hit[call]} of {points[call]}" for call in names)
        print(f"{sum(hit.values())} kill points of one update: {text}")
    finally:
        course.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Is there memory for two versions at once, and what follows if not; and how much there is."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from edgefleet_shared.messages import SwapWay

Way = Literal["overlap", "stand_in", "drain", "refuse"]


class Memory(NamedTuple):
    """Kilobytes of one kind of memory.

    Attributes:
        needed: What loading will take.
        available: What can be had now.
        freed: What ending the old version would free beside that.
        reserve: What stays free.
        stand_in: What a stand-in takes; -1: there is none.
    """

    needed: int
    available: int
    freed: int
    reserve: int
    stand_in: int = -1

    @property
    def stands_in(self) -> bool:
        """Whether a stand-in fits beside the old version, and later beside the new one."""
        rest = self.available - self.reserve - self.stand_in
        return self.stand_in >= 0 and rest >= 0 and rest + self.freed - self.needed >= 0


class Decision(NamedTuple):
    """What to do, why in a sentence with numbers, and the code of a refusal."""

    way: Way
    detail: str
    code: str = "no_memory"


def decide(policy: SwapWay, memory: Memory, *, serving: bool) -> Decision:
    """Decide how a version is loaded.

    Args:
        policy: What the assignment asks for.
        memory: The prediction.
        serving: Whether anything would have to be drained.
    """
    beside = memory.available - memory.reserve - memory.needed
    alone = beside + memory.freed
    numbers = (
        f"It will take {memory.needed // 1024} MB; {memory.available // 1024} MB are available, of "
        f"which {memory.reserve // 1024} stay free"
    )
    always = serving and policy in {"drain", "stand_in"}
    if policy == "overlap" or (beside >= 0 and not always):
        return Decision("overlap", f"{numbers}.")
    if policy == "refuse" or alone < 0:
        more = f", and ending the old version frees {memory.freed // 1024} MB" if serving else ""
        return Decision("refuse", f"{numbers}{more}.")
    why = f"{numbers}; ending the old version frees {memory.freed // 1024} MB"
    if not serving:
        return Decision("overlap", f"{why}.")
    if policy != "drain" and memory.stands_in:
        why += f", and a stand-in takes {memory.stand_in // 1024} MB meanwhile"
        return Decision("stand_in", f"{why}.")
    if policy == "stand_in":
        lacks = (
            "no variant is named as fallback"
            if memory.stand_in < 0
            else (f"a stand-in, which takes {memory.stand_in // 1024} MB, does not fit")
        )
        return Decision("refuse", f"{why}, but {lacks}.", "no_stand_in")
    return Decision("drain", f"{why}.")


def stricter(one: Decision, other: Decision) -> Decision:
    """Return the decision that asks for more, of two kinds of memory; the first if they agree."""
    order = ("overlap", "stand_in", "drain", "refuse")
    return max((one, other), key=lambda decision: order.index(decision.way))


def available_kb(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the memory that can be had: the machine's, or less by the limit of a cgroup.

    What belongs to files and is not in use counts as available: it can be given back.
    """
    found = _machine_kb(proc / "meminfo")
    try:
        path = (proc / "self" / "cgroup").read_text().rpartition("::")[2].strip().lstrip("/")
    except OSError:
        return found
    group = groups / path
    while group.is_relative_to(groups):
        found = min(found, _group_kb(group, found))
        if group == groups:
            break
        group = group.parent
    return max(0, found)


def _machine_kb(path: Path) -> int:
    for line in path.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1])
    return 0


def _group_kb(group: Path, unlimited: int) -> int:
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit == "max":
            return unlimited
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return unlimited
    return (int(limit) - used + int(stat.get("inactive_file", 0))) // 1024


def workers_kb(pids: list[int], proc: Path = Path("/proc")) -> int:
    """Return the proportional memory (PSS) of processes; one that cannot be read counts 0."""
    total = 0
    for pid in pids:
        try:
            text = (proc / str(pid) / "smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total

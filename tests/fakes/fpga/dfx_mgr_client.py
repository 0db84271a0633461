"""Stands in for `dfx-mgr-client`, with a daemon's memory in a folder; prints as both faces do.

    dfx_mgr_client.py STATE FIRMWARE FACE -loadByName NAME

FACE is `modern` or `old` (2022). STATE/daemon.json holds the slots; STATE/orders.json asks for
`down` (nobody answers), `id_err` (another shell) or `refuse` (the PL does not take it).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

STATE, FIRMWARE, FACE = (
    (Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    if __name__ == "__main__"
    else (Path(), Path(), "")
)
SLOTS = 2
HELP = {
    "modern": "-listPackage [-all] [-filter]\n-load <ID>\n-loadByName <name>\n-unload <ID>\n"
    "-unloadByName <name>",
    "old": "-listPackage\n-load <accel_name>\n-remove <slot#>",
}


def read(name: str, default):
    """Return a JSON file of the state folder."""
    path = STATE / name
    return json.loads(path.read_text()) if path.exists() else default


def packages() -> list[tuple[str, str, bool]]:
    """Return (accelerator, base, flat) of what lies in the firmware folder."""
    found = []
    for shell in sorted(FIRMWARE.glob("xilinx/*/shell.json")):
        base = shell.parent
        accels = sorted({p.parent.parent for p in base.glob("*/*_slot*/accel.json")})
        if not accels:
            found.append((base.name, base.name, True))
        found += [(accel.name, base.name, False) for accel in accels]
    return found


def listing(loaded: dict[str, int]) -> str:
    """Return the list as this face prints it."""
    lines, pid = [], "id_err" if read("orders.json", {}).get("id_err") else "id_ok"
    for number, (name, base, flat) in enumerate(packages(), 1):
        kind, slot = ("XRT_FLAT" if flat else "XRT_PL_DFX"), loaded.get(name, -1)
        if FACE == "modern":
            cut = base if len(base) <= 11 else base[:8] + "..."
            count = "(0+0+0)" if flat else f"(0+{SLOTS}+0)"
            lines.append(
                f"{number:2} {kind:11} {'-':9} {'-':9} {cut:11} {pid} {count:12} {slot:<8} "
                f"{slot:<6} {name}"
            )
        else:
            count, where = ("(0+0)" if flat else f"({SLOTS}+0)"), f"{slot},"
            base_kind = "XRT_FLAT" if flat else "PL_DFX"
            lines.append(f"{name:>30}{kind:>16}{base:>24}{base_kind:>12}{count:>12}{where:>10}")
    head = "ID accelType" if FACE == "modern" else "Accelerator   Accel_type  #slots(PL+AIE)"
    return "\n".join([head, "-- ---------", *lines])


def load(name: str, loaded: dict[str, int]) -> str:
    """Load into the first free slot, as the daemon does; errors are negative numbers."""
    flat = next((f for n, _, f in packages() if n == name), None)
    free = next((n for n in range(1 if flat else SLOTS) if n not in loaded.values()), None)
    if flat is None:
        return f"{name}: load Error: -1"
    if free is None:
        return f"{name}: load Error: -8 (no empty slot)"
    if read("orders.json", {}).get("refuse"):
        return f"{name}: load Error: -5"
    loaded[name] = free
    (STATE / "daemon.json").write_text(json.dumps(loaded))
    return f"{name}: loaded to slot {free}"


def main(arguments: list[str]) -> int:
    """Do one command; returns the exit status, which says little, as the real one's."""
    if read("orders.json", {}).get("down"):
        print("connect: No such file or directory")
        return 255
    loaded = read("daemon.json", {})
    match arguments:
        case ["-h"]:
            print(HELP[FACE])
        case ["-listPackage", *_]:
            print(listing(loaded))
        case ["-loadByName" | "-load", name]:
            print(load(name, loaded))
        case ["-unloadByName", name]:
            loaded.pop(name, None)
            (STATE / "daemon.json").write_text(json.dumps(loaded))
        case ["-remove", slot]:
            kept = {name: n for name, n in loaded.items() if n != int(slot)}
            (STATE / "daemon.json").write_text(json.dumps(kept))
        case _:
            print("Option not recognized, Try again.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[4:]))

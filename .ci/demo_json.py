"""Read the demo's last line and hold it to what README promises: `demo_json.py [TRANSPORT]`."""

from __future__ import annotations

import json
import sys

KEYS: dict[str, set[str]] = {
    "inference": {"requests", "failed", "accuracy_1", "accuracy_2"},
    "swap": {"requests", "failed", "p50_ms_before", "p99_ms_before", "p99_ms_during",
             "longest_gap_ms"},
    "rollback": {"from", "to", "trigger", "seconds"},
}  # fmt: skip
ROLLOUT = {"model", "version", "state", "devices_succeeded", "devices_rolled_back",
           "devices_untouched", "seconds"}  # fmt: skip


def main() -> None:
    """Exit with a sentence for the first promise that is not kept."""
    found = json.loads(sys.stdin.read())
    faults = [
        key for key in ("transport", "broker", "devices", "rollouts", *KEYS) if key not in found
    ]
    faults += [f"{part}.{key}" for part, keys in KEYS.items() if part in found
               for key in keys - found[part].keys()]  # fmt: skip
    faults += [f"rollouts.{key}" for rollout in found.get("rollouts", [])
               for key in ROLLOUT - rollout.keys()]  # fmt: skip
    if faults:
        sys.exit(f"The demo's JSON lacks {', '.join(sorted(set(faults)))}.")
    wanted = sys.argv[1] if len(sys.argv) > 1 else "mqtt"
    if found["transport"] != wanted:
        sys.exit(f"The demo ran over {found['transport']}, not {wanted}.")
    for part in ("inference", "swap"):
        if found[part]["failed"] != 0 or not found[part]["requests"] > 0:
            sys.exit(f"{part}: {found[part]['failed']} of {found[part]['requests']} failed.")
    if found["broker"] != "mosquitto":
        sys.exit(f"The demo took {found['broker']}, though mosquitto is there.")
    states = [rollout["state"] for rollout in found["rollouts"]]
    if len(states) != 3 or states[:2] != ["completed"] * 2 or states[2] == "completed":
        sys.exit(f"The rollouts ended {states}.")
    print("The demo keeps its promises.")


if __name__ == "__main__":
    main()

"""What trust costs: an assignment verified, agentd's memory with it, 10,000 assignments signed.

All in one run on one core at a time. Both sides of a ratio take short turns, in processor time of
this thread, so that what else the machine does meets both alike; the figure is the median of the
rounds' ratios. Refreshing the catalog
is not in it: a device does that once a bundle, and it has a line of its own.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from edgefleet_agent.trust.acceptance import Acceptance
from edgefleet_shared import dsse, strict_json
from edgefleet_shared.install import Case, why_not
from edgefleet_shared.messages import ASSIGNMENT_TYPE, Assignment
from edgefleet_shared.package import target_path
from edgefleet_shared.times import format_time
from edgefleet_shared.trust import read_release, unseal_assignment
from tests.agent.world import World
from tests.benchmarks.idle import serving_memory_mib

ROUNDS, QUICK_ROUNDS = 2_000, 300
CALLS = 10
DEVICES = 10_000
AIM_RATIO, AIM_MIB, AIM_SIGNATURES = 2.0, 40.0, 8_000


def run(*, quick: bool) -> dict[str, Any]:
    """Return the figures; ends within 40 s if `quick`."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    folder = Path(tempfile.mkdtemp(prefix="ef", dir="/tmp"))
    world = World()
    try:
        figures = _verifying(world, folder, QUICK_ROUNDS if quick else ROUNDS)
        figures |= _signing(world)
    finally:
        world.close()
        shutil.rmtree(folder)
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    memory = serving_memory_mib()
    return figures | {
        "agentd_private_mib": round(memory, 2),
        "agentd_private_of_aim": round(memory / AIM_MIB, 3),
    }


def _verifying(world: World, folder: Path, rounds: int) -> dict[str, Any]:
    """Compare what agentd does with an envelope with one P-256 signature over as many bytes."""
    identity = world.enrolled(folder / "state")
    slot = world.publish("1.0.0")
    envelope = world.assignment(identity, slot)
    sealed = dsse.read(envelope, ASSIGNMENT_TYPE)
    pae, who = sealed.pae(), identity.who
    target = world.publishers["digits"].targets[target_path("digits", "1.0.0")]
    key: Any = load_pem_public_key(world.key("director").keyval["public"].encode())
    signature = bytes.fromhex(next(iter(sealed.signatures.values())).signature)
    rule = ec.ECDSA(hashes.SHA256())

    def bare() -> None:
        key.verify(signature, pae, rule)

    def whole() -> None:
        order = unseal_assignment(envelope, world.targets)
        for wanted in order.slots.values():
            case = Case(
                who, "generic-x86_64", datetime.now(UTC), 0, "", order, wanted,
                read_release(target), 0,
            )  # fmt: skip
            assert why_not(case) == ""

    ours, theirs = _in_turns(whole, bare, rounds)
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    return {
        "verify_of_bare_p256": round(ratio, 3),
        "verify_of_aim": round(ratio / AIM_RATIO, 3),
        "verify_assignment_us": round(statistics.median(ours), 1),
        "verify_bare_p256_us": round(statistics.median(theirs), 1),
        "envelope_bytes": len(envelope),
        "accept_with_refresh_ms": round(_accepting(world, identity, folder / "state", slot), 2),
    }


def _accepting(world: World, identity: Any, state: Path, slot: Any) -> float:
    """Return milliseconds of the whole of it: a new bundle, all its roles, floors on disk."""
    acceptance = Acceptance(state, identity.who, "generic-x86_64", identity.root, time.time)
    taken = []
    for _ in range(15):
        world.release()
        document = world.assign(identity, slot)
        begun = time.perf_counter()
        acceptance.accept(document)
        taken.append(1000 * (time.perf_counter() - begun))
    return statistics.median(taken)


def _in_turns(
    one: Callable[[], None], other: Callable[[], None], rounds: int
) -> tuple[list[float], list[float]]:
    """Return microseconds of processor time a call of both, round by round."""
    found: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for act, times in zip((one, other), found, strict=True):
            begun = time.thread_time()
            for _ in range(CALLS):
                act()
            times.append(1e6 * (time.thread_time() - begun) / CALLS)
    return found


def _signing(world: World) -> dict[str, Any]:
    """Sign an assignment of one slot for each of 10,000 devices, as the director's service does."""
    slot, now = world.publish("2.0.0"), datetime.now(UTC)
    issued, expires = format_time(now), format_time(now + timedelta(hours=24))
    orders = [
        Assignment(
            1, "demo", f"device-{number}", "sha256:" + f"{number:064x}", number, issued, expires,
            {"digits": slot},
        )
        for number in range(1, DEVICES + 1)
    ]  # fmt: skip
    signer = world.keys["director"]
    begun, cpu = time.perf_counter(), time.process_time()
    for order in orders:
        dsse.seal(strict_json.encode(order), ASSIGNMENT_TYPE, signer)
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    return {
        "signed": DEVICES,
        "signed_per_core_s": round(DEVICES / cpu),
        "signed_of_aim": round(DEVICES / cpu / AIM_SIGNATURES, 2),
        "signed_per_wall_s": round(DEVICES / seconds),
    }

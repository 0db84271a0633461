"""One build of the simulator for all tests of a session, in however many processes."""

from __future__ import annotations

import fcntl
import os

import pytest

SEEDS = (11, 12)


@pytest.fixture(scope="session")
def cores(tmp_path_factory):
    """The simulator of a core for each of `SEEDS`: a program, about ten seconds of compiling."""
    pytest.importorskip("da4ml", reason="da4ml has wheels for Linux on x86_64 alone")
    from tests.rtl.generate import build

    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    program = shared / "rtl/obj/cores"
    (shared / "rtl").mkdir(exist_ok=True)
    with (shared / "rtl.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            build(shared / "rtl", list(SEEDS))
    return program

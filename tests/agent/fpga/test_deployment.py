"""A real agentd and gateway with an FPGA that is a kernel-interface fake, and cores in Python."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace

from edgefleet_agent import config
from tests.agent.fpga.board import QUESTION, Board, Clients
from tests.agent.world import until
from tests.fakes.fpga import mlp


@pytest.fixture
def board(request):
    """A board of so many slots, started."""
    one = Board(slots=getattr(request, "param", 2))
    one.start()
    yield one
    one.close()


def test_two_slots_swap_as_a_processor_does(board):
    """The new core is programmed beside the old one and proved; no request fails, none waits."""
    board.assign(board.publish("1.0.0", 1))
    board.reaches("succeeded", "1.0.0")
    assert board.runs_on() == "core"
    with Clients(board) as clients:
        board.assign(board.publish("2.0.0", 2))
        board.reaches("succeeded", "2.0.0")
        until(lambda: board.ask()[1] == mlp.infer(2, QUESTION)[0].tolist(), "the new core")
    clients.check(1, 2)
    assert "stand_in" not in board.codes()
    until(lambda: board.kernel.windows() == {"core1"}, "the old core is unloaded")
    board.kernel.order(error="write complete error")
    board.assign(board.publish("3.0.0", 3))
    assert board.reaches("failed", "3.0.0")["reason"] == "fpga_program"
    assert board.ask() == (200, mlp.infer(2, QUESTION)[0].tolist())
    assert board.runs_on() == "core"


@pytest.mark.parametrize("board", [1], indirect=True)
def test_a_flat_shell_is_stood_in_for_while_it_is_programmed(board):
    """Without a free slot the processor answers with the same integers, and the core comes back.

    So it is where all goes well, where the core turns out to be another than its package says, and
    where the FPGA refuses: then it is the old core that comes back.
    """
    first = board.publish("1.0.0", 1)
    board.assign(first)
    board.reaches("succeeded", "1.0.0")
    board.kernel.order(delay_s=0.1)
    with Clients(board) as clients:
        board.assign(board.publish("2.0.0", 2))
        board.reaches("succeeded", "2.0.0")
    clients.check(1, 2)
    assert board.answered_by_stand_in(first) > 0
    until(lambda: "stand_in" in board.codes(), "the event")
    assert board.runs_on() == "core"
    board.kernel.order()
    with Clients(board) as clients:
        board.assign(board.publish("3.0.0", 3, body=4))
        assert "BUILD" in board.reaches("failed", "3.0.0")["detail"]
        until(lambda: board.runs_on() == "core", "the old core")
        board.kernel.order(error="write init error")
        board.assign(board.publish("4.0.0", 4))
        assert board.reaches("failed", "4.0.0")["reason"] == "fpga_program"
        board.kernel.order()
        until(lambda: board.runs_on() == "core", "the old core again")
    clients.check(2)


def test_without_an_fpga_the_processor_is_chosen_and_that_is_told():
    """On a plain machine the package's CPU variant serves, and the report says why not the core."""
    board = Board(slots=2)
    board.config = replace(
        board.config,
        fpga=config.FpgaOptions(
            sysfs=str(board.folder / "none"), configfs=str(board.folder / "none"), dfx_mgr="no-such"
        ),
    )
    board.start()
    try:
        board.assign(board.publish("1.0.0", 1))
        report = board.reaches("succeeded", "1.0.0")
        assert report["variant"] == "cpu"
        assert board.ask() == (200, mlp.infer(1, QUESTION)[0].tolist())
        told = json.dumps(board.transport.items("events"))
        assert "fpga is not usable: unavailable: no no-such on PATH" in told
    finally:
        board.close()

"""RTL in simulation through the whole agent: published, assigned, programmed, asked, swapped.

The kernel's side of the FPGA is a fake; agentd, gateway, sandboxed workers, register windows and
the cores' Verilog are real. No FPGA is touched.
"""

from __future__ import annotations

import pytest

from tests.agent.fpga.board import QUESTION, Board, Clients
from tests.agent.world import until
from tests.fakes.fpga import mlp
from tests.rtl.conftest import SEEDS

pytestmark = [pytest.mark.verilator, pytest.mark.timeout(300)]  # it compiles once


def test_two_cores_swap_under_load_with_nothing_failed(cores):
    """Each answer of either core is the integer reference's in every bit, and each is an answer."""
    board = Board(slots=2)
    board.start()
    try:
        first, second = (
            board.publish(f"{n + 1}.0.0", seed, core=[str(cores), str(n)])
            for n, seed in enumerate(SEEDS)
        )
        board.assign(first)
        board.reaches("succeeded", "1.0.0")
        assert board.runs_on() == "core"
        with Clients(board) as clients:
            until(lambda: len(clients.answers) > 20, "answers of the first core")
            board.assign(second)
            board.reaches("succeeded", "2.0.0")
            seen = len(clients.answers)
            until(lambda: len(clients.answers) > seen + 20, "answers of the second core")
        clients.check(*SEEDS)
        assert board.runs_on() == "core"
        assert board.ask() == (200, mlp.infer(SEEDS[1], QUESTION)[0].tolist())
        assert "stand_in" not in board.codes()
        until(lambda: board.kernel.windows() == {"core1"}, "the old core is unloaded")
        receipts = until(lambda: board.transport.items("receipts")[1:], "the receipt of the swap")
        assert receipts[0]["failed"] == 0
        assert receipts[0]["requests_during"] > 0
    finally:
        board.close()

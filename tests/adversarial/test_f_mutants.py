"""Section F, row 51: seeded mutants of a valid model; the benchmark `mutants` takes all."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.adversarial.breeding import PARENTS, breed
from tests.adversarial.mutants import Bench

KNOWN = {
    "load_failed", "load_timeout", "out_of_memory", "crashed", "golden_mismatch", "not_a_model",
    "op_domain", "external_data_path", "external_data_range", "sparse_external", "tensor_data",
    "memory_address", "bad_function", "sandbox_violation", "invalid_model", "tensor_too_large",
}  # fmt: skip
"""Every way in which a mutant may end; `proved` beside them."""

COUNT = 2000


@pytest.mark.parametrize("form", PARENTS)
def test_51_no_mutant_passes_its_digest_and_none_serves_that_answers_otherwise(form):
    """Two thousand of the 4,000 by the worker's own steps, in its sandbox.

    With the signed digest only the untouched bytes pass. As if the mutant itself had been signed,
    only those come up that answer what numpy computes; a process that dies takes one mutant along.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.adversarial.pen", form, str(COUNT)],
        check=False, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.stdout, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert (done.returncode, found["wrong"]) == (0, [])
    kinds = found["as_if_signed"]
    assert sum(kinds.values()) == found["mutants"] == COUNT
    assert found["refused_by_digest"] + found["untouched"] == COUNT
    assert kinds.keys() <= KNOWN | {"proved"}
    assert {"proved", "golden_mismatch", "not_a_model"} <= kinds.keys()


@pytest.mark.parametrize("form", PARENTS)
def test_51_mutants_never_end_more_than_the_process_that_loads_them(form, tmp_path):
    """Forty through the real gateway, as if signed: gateway, zygote and others' answers stay."""
    bench = Bench(tmp_path, form)
    try:
        kinds = set()
        for seed in range(40):
            outcome = bench.prove(seed)
            kinds.add("proved" if outcome.ok else outcome.code)
        assert kinds <= KNOWN | {"proved"}
        assert {"proved", "not_a_model"} <= kinds
        assert bench.sound()
    finally:
        bench.close()


@pytest.mark.parametrize("form", PARENTS)
def test_51_the_same_seed_is_the_same_mutant(form):
    """Whoever finds something by a seed can show it to others."""
    again = [breed(form, seed) for seed in range(60)]
    assert [breed(form, seed) for seed in range(60)] == again
    assert len({bytes(one) for one in again}) > 50

"""Letting go of library pages: what is let go, what never is, and that all works on after it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from edgefleet_agent import code_pages
from edgefleet_agent.code_pages import Mapping

KINDS = """\
7f0000000000-7f0000800000 r-xp 00000000 fe:00 11    /usr/lib/libbig.so.3
Size:               8192 kB
Rss:                5000 kB
Pss:                5000 kB
Anonymous:             0 kB
7f0000800000-7f0000900000 r--p 00800000 fe:00 11    /usr/lib/libbig.so.3
Rss:                1000 kB
Anonymous:             0 kB
7f0000900000-7f0000a00000 r--p 00900000 fe:00 11    /usr/lib/librelocated.so
Rss:                1000 kB
Anonymous:           336 kB
7f0000a00000-7f0000b00000 rw-p 00a00000 fe:00 11    /usr/lib/libbig.so.3
Rss:                1000 kB
Anonymous:             0 kB
7f0000b00000-7f0000c00000 r--p 00000000 fe:00 12    /var/lib/edgefleet/weights
Rss:                1024 kB
Anonymous:             0 kB
7f0000c00000-7f0000d00000 r--s 00000000 fe:00 13    /usr/lib/libshared.so
Rss:                1024 kB
Anonymous:             0 kB
7f0000d00000-7f0000e00000 r-xp 00000000 fe:00 14    /usr/lib/libsmall.so
Rss:                  64 kB
Anonymous:             0 kB
7f0000e00000-7f0000f00000 r-xp 00000000 00:00 0
Rss:                1024 kB
Anonymous:             0 kB
"""


def test_only_what_a_library_holds_unchanged_is_let_go():
    """Not what was relocated or can be written, no weights, nothing shared, small or nameless."""
    assert code_pages.unchanged(KINDS) == [
        Mapping(0x7F0000000000, 0x7F0000800000, 5000),
        Mapping(0x7F0000800000, 0x7F0000900000, 1000),
    ]


def test_a_kernel_that_tells_nothing_costs_nothing(tmp_path):
    """Without smaps nothing is let go, and nothing fails."""
    assert code_pages.let_go(tmp_path / "smaps") == 0


@pytest.mark.parametrize("threads", [1, 2])
def test_onnxruntime_computes_after_its_pages_were_let_go(tmp_path, threads):
    """The pages of a library that has loaded a model leave memory, and the model runs as before."""
    from tests.models import linear

    model = tmp_path / "model.onnx"
    model.write_bytes(linear(2.0))
    code = (
        "import json, sys, numpy as np, onnxruntime as ort\n"
        "from edgefleet_agent import code_pages\n"
        "options = ort.SessionOptions()\n"
        f"options.intra_op_num_threads = {threads}\n"
        "session = ort.InferenceSession(sys.argv[1], options)\n"
        "def resident():\n"
        "    lines = open('/proc/self/smaps_rollup').readlines()\n"
        "    return next(int(line.split()[1]) for line in lines if line.startswith('Rss:'))\n"
        "def run():\n"
        "    return session.run(None, {'x': np.ones((1, 4), np.float32)})[0].tolist()\n"
        "first, before = run(), resident()\n"
        "told = code_pages.let_go()\n"
        "print(json.dumps([told, before - resident(), first == run()]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(model)],
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    told, fell, same = json.loads(done.stdout)
    assert same
    assert told > 4096
    assert fell > told // 2  # some of it is in use again by the time that it is measured

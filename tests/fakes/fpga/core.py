"""A core in Python behind a register window, for tests that are not about RTL.

    python -m tests.fakes.fpga.core SEED VERSION DEVICE

A `VERSION` of 666 never answers.
"""

from __future__ import annotations

import mmap
import os
import sys
import time

import numpy as np

from edgefleet_shared import fpga
from tests.fakes.fpga import mlp

HANGS = 666


def main(seed: int, version: int, device: str) -> None:
    """Serve the window until killed."""
    fd = os.open(device, os.O_RDWR)
    words = np.frombuffer(mmap.mmap(fd, mmap.PAGESIZE), np.uint32)
    words[fpga.ID // 4], words[fpga.VERSION // 4] = mlp.CORE_ID, version
    digest = bytes.fromhex(mlp.build(seed))
    words[fpga.BUILD // 4 : fpga.BUILD // 4 + 8] = np.frombuffer(digest, ">u4")
    words[0] = fpga.IDLE
    print("ready", flush=True)
    parent = os.getppid()
    while os.getppid() == parent:
        if words[0] & fpga.START and version != HANGS:
            first = mlp.OFFSET_IN // 4
            x = words[first : first + mlp.INPUTS].astype(np.int32)
            y = mlp.reference(seed, x[None].astype(np.int64))[0]
            last = mlp.OFFSET_OUT // 4
            words[last : last + mlp.OUTPUTS] = (y & 0xFFFFFFFF).astype(np.uint32)
            words[0] = fpga.DONE | fpga.IDLE
        time.sleep(0.0001)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])

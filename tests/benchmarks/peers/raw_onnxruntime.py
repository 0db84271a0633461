"""A model and nothing else: `run`, over and over, in one process.

usage: raw_onnxruntime.py MODEL INPUT SHAPE THREADS SECONDS HZ; SHAPE as 1,64. So many threads share
a session whose runs take one thread each; HZ 0 = as fast as can be. Writes one JSON object.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from statistics import median

import numpy as np
import onnxruntime as ort


def main(path: str, name: str, shape: str, threads: int, seconds: float, hz: float) -> None:
    """Run and write what it took."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    size = [int(one) for one in shape.split(",")]
    given = {name: np.random.default_rng(0).random(size, np.float32)}
    for _ in range(5):
        session.run(outputs, given)
    spent: list[int] = []
    begun, cpu = time.monotonic(), time.process_time()

    def run() -> None:
        count = 0
        while time.monotonic() < begun + seconds:
            before = time.perf_counter_ns()
            session.run(outputs, given)
            spent.append(time.perf_counter_ns() - before)
            count += 1
            if hz:
                time.sleep(max(0.0, begun + count / hz - time.monotonic()))

    workers = [threading.Thread(target=run) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    elapsed = time.monotonic() - begun
    print(json.dumps({
        "p50_us": round(median(spent) / 1e3, 1),
        "rps": round(len(spent) / elapsed, 1),
        "cpu_percent": round(100 * (time.process_time() - cpu) / elapsed, 2),
    }))  # fmt: skip


main(
    sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5]), float(sys.argv[6])
)

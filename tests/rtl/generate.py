"""From integer weights to a simulator: da4ml writes Verilog, Verilator and g++ compile it.

    python -m tests.rtl.generate FOLDER SEED SEED

da4ml (LGPL) is a dependency of tests alone; nothing of it or by it is in the tree.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.fakes.fpga import mlp

HERE = Path(__file__).parent
LATENCY_CUTOFF = 5
VERSION = 1


def core(folder: Path, name: str, seed: int) -> int:
    """Write one core's Verilog as modules of `name`; return the width of an output."""
    from da4ml.codegen.rtl import RTLModel
    from da4ml.trace import FixedVariableArrayInput, HWConfig, comb_trace, to_pipeline

    first, bias, second = mlp.weights(seed)
    raw = FixedVariableArrayInput(mlp.INPUTS, hwconf=HWConfig(1, -1, -1))
    width = np.full(mlp.INPUTS, mlp.IN_BITS - 1)
    x = raw.quantize(np.ones(mlp.INPUTS, int), width, np.zeros(mlp.INPUTS, int))
    y = (x @ first.astype(float) + bias.astype(float)).relu() @ second.astype(float)
    pipeline = to_pipeline(comb_trace(raw, y), LATENCY_CUTOFF, verbose=False)
    RTLModel(pipeline, name, folder).write()
    assert len(pipeline.solutions) < 6, "registers.v waits 8 cycles"
    wrapper = (folder / f"src/{name}_wrapper.v").read_text()
    found = re.search(r"output \[(\d+):0\] model_out", wrapper)
    assert found, wrapper
    return (int(found[1]) + 1) // mlp.OUTPUTS


def top(widths: list[int], seeds: list[int]) -> str:
    """Return the module that holds a register window for each core, chosen by `slot`."""
    parts = []
    for n, (width, seed) in enumerate(zip(widths, seeds, strict=True)):
        parts.append(f"""
  wire [31:0] q{n};
  wire [{mlp.INPUTS * mlp.IN_BITS - 1}:0] in{n};
  wire [{mlp.OUTPUTS * width - 1}:0] out{n};
  registers #(.ID(32'h{mlp.CORE_ID:x}), .VERSION({VERSION}), .BUILD(256'h{mlp.build(seed)}),
    .OUT_BW({width})) window{n} (.clk(clk), .write(write && slot == {n}), .address(address),
    .data(data), .q(q{n}), .core_in(in{n}), .core_out(out{n}));
  core{n}_wrapper core{n} (.clk(clk), .model_inp(in{n}), .model_out(out{n}));""")
    choice = " : ".join(f"slot == {n} ? q{n}" for n in range(len(seeds)))
    return f"""`timescale 1ns / 1ps
module cores (input clk, input [3:0] slot, input write, input [11:0] address, input [31:0] data,
    output [31:0] q);{"".join(parts)}
  assign q = {choice} : 0;
endmodule
"""


def build(folder: Path, seeds: list[int]) -> Path:
    """Return the simulator of a core for each seed, as a program."""
    widths = [core(folder / f"core{n}", f"core{n}", seed) for n, seed in enumerate(seeds)]
    sources: dict[str, str] = {}
    for path in sorted(folder.glob("core*/src/**/*.v")):
        # A lint code that Debian's Verilator 5.006 does not know.
        sources[path.name] = path.read_text().replace("WIDTHTRUNC", "WIDTH")
    sources["registers.v"] = (HERE / "registers.v").read_text()
    sources["cores.v"] = top(widths, seeds)
    for name, text in sources.items():
        (folder / name).write_text(text)
    subprocess.run(
        [
            "verilator", "--cc", "--exe", "--build", "-j", "2", "--top-module", "cores",
            "-Wno-fatal", "-Wno-lint", "-Wno-style", "-CFLAGS", "-O0", "--output-split", "0",
            "--Mdir", str(folder / "obj"), "-o", "cores", "cores.v", str(HERE / "harness.cpp"),
        ],
        cwd=folder, check=True, stdout=subprocess.DEVNULL,
        env={**os.environ, "OBJCACHE": "", "MAKEFLAGS": "OPT_FAST=-O0 OPT_SLOW=-O0 OPT_GLOBAL=-O0"},
    )  # fmt: skip
    return folder / "obj/cores"


if __name__ == "__main__":
    print(build(Path(sys.argv[1]).resolve(), [int(seed) for seed in sys.argv[2:]]))

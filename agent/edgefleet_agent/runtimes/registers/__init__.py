"""Runs a core in an FPGA by its register window; see `edgefleet_shared.fpga` for the map."""

from edgefleet_agent.runtimes.registers.session import RegisterRuntime

__all__ = ["RegisterRuntime"]

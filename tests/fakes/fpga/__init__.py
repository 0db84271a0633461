"""Fakes of an FPGA: the kernel's interface, dfx-mgr's client, and cores behind register windows."""

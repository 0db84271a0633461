"""Adapters of the port `Accelerator`; no module here may import an array library."""

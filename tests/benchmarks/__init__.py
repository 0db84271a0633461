"""Figures about edgefleet beside others': `python -m tests.benchmarks NAME [--quick] [--json]`."""

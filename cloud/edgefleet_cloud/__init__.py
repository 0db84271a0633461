"""The edgefleet fleet manager: what may run, what should run where, and what did."""

__version__ = "0.1.0"

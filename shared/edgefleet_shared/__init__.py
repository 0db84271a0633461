"""The contract that edgefleet's cloud and devices both sign. Pure: nothing here does I/O."""

__version__ = "0.1.0"

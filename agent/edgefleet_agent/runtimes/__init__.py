"""Adapters of the port `Runtime`; each imports its library only when a worker asks for it."""

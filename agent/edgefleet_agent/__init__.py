"""The edgefleet daemon on the device: agentd, gateway, zygote, workers."""

__version__ = "0.1.0"

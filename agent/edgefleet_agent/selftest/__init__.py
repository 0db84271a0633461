"""`edgefleet-agent selftest`: what works on this very machine, measured, from the installed package.

It starts a gateway of its own in a folder of its own; an agent that runs here is not touched.
"""

"""Declared pre- and post-processing, around a session's `run`; runs in the sandboxed worker alone.

Nothing here comes from a package but numbers and names: `edgefleet_shared.processing` lists them.
"""

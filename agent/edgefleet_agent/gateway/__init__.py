"""The data plane: local applications' requests to the right worker, and the answers back.

It outlives agentd's restarts, holds no key, reaches no network beyond loopback, parses no model.
"""

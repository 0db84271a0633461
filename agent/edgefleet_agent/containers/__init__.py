"""Container variants: agentd asks, a process of its own, the keeper, talks to dockerd.

Whoever can write to dockerd's socket is root on this machine, so the gateway and the workers never
hold it, and neither does agentd, which parses what the network brings.
"""

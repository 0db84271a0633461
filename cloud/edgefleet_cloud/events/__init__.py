"""The event log: what happened in the fleet, in order, as pages and as a live stream."""

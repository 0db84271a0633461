"""report: what devices say about themselves, believed only when their own key signed it."""

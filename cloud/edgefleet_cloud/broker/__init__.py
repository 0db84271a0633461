"""The embedded broker, and the configuration of one that stands alone."""

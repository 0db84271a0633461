"""What makes the event log an audit log: the configuration it began with, and its signed heads."""

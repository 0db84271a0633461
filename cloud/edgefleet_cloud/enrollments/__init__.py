"""From a one-time ticket to a device's certificate, and the end of a device's life."""

"""Ways to reach devices; each implements `ports.Transport`."""

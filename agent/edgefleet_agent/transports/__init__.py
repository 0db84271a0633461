"""Ways to the fleet manager; each implements `ports.Transport`."""

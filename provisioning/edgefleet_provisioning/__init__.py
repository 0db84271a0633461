"""edgefleet_provisioning."""

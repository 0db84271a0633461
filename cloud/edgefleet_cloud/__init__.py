"""edgefleet_cloud."""

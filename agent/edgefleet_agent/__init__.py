"""edgefleet_agent."""

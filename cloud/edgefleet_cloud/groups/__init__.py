"""Groups: named filters over devices, always up to date."""

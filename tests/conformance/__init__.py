"""The device's trust code as a client of any TUF repository."""

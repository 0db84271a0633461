"""What the device believes: floors, the catalog (TUF) and the acceptance of assignments."""

"""`edgefleet demo`: a throw-away fleet of real parts, and one model's whole way through it."""

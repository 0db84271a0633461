"""Who may use the API: bearer tokens, stored as hashes."""

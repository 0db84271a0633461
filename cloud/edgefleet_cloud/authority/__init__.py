"""The fleet's certificate authority: what it signs, what it signed, and what it took back."""

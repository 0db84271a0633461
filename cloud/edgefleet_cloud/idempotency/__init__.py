"""Idempotency-Key: a POST that is repeated happens once and is answered alike."""

"""Immutable bytes by digest, in OCI image layout, and resumable uploads into it."""

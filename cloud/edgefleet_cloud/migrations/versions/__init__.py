"""Every change of the schema, in order; written by `python -m edgefleet_cloud.migrations`."""

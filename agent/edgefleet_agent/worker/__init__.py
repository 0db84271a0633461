"""One process that runs one version of one model; it has no network and no keys."""

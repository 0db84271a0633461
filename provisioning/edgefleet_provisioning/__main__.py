"""`python -m edgefleet_provisioning` is the `edgefleet` command."""

from edgefleet_provisioning.cli import main

main()

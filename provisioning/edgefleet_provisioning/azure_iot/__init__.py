"""What the operator changes in Azure: enrolment groups of a DPS, CA certificates of hub and DPS."""

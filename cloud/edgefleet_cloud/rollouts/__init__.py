"""Target and announce: which device should run what, in which order, and when to stop."""

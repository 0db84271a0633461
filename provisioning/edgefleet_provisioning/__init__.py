"""The operator's and the publisher's hands: keys, packages, enrolment, rollouts."""

__version__ = "0.1.0"

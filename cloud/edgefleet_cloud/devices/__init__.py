"""The devices of the fleet: who they are, how they are labelled, what they should and do run."""

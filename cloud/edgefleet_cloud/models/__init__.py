"""Models and their versions: the step 'accept'."""

"""Training: the split of a fleet, the loop, the fit of a detector, and how fast it is."""

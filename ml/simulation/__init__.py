"""A simulated fleet: surroundings, homes, what goes wrong in them and in their delivery."""

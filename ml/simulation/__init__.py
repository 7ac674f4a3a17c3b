"""A simulated fleet: environment, households, anomalies and the defects of its delivery."""

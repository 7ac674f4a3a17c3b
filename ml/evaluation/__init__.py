"""The detection benchmark: anomalies planted in real readings, every detector side by side."""

"""The detection benchmark: anomalies injected into real readings, every detector side by side."""

"""From network outputs to the result tables: standardize, calibrate, accumulate, flag.

In order: `network_pass` (expected profiles and log odds), `standardize` (deviation from the fleet
or from the household's usual error), `rules` (repeated and zero readings), `calibration` (surprisal,
p-values, alert thresholds), `evidence` (lasting anomalies), `tables` (what is published). The
equations and their sources are in `docs/detector.md`.
"""

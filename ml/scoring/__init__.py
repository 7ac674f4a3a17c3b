"""From network outputs to the result tables: standardize, calibrate, accumulate, flag.

Read in this order: `network_pass` (expected profiles and log odds), `calibration` (deviation,
surprisal, p-values: what it calls is in `tails`, `rules`, `corrections` and `evidence`), `alerts`
(flags within the budget), `tables` (what is published), `detector` (the artefact that holds it
all). Every number stands in `config`; the equations and their sources are in `docs/detector.md`.
"""

"""Small fleets and truths that tests of the evaluation build by hand."""

import numpy as np
import polars as pl

from ml.evaluation.inject import GroundTruth, InjectedEpisode
from ml.fleet import Fleet
from tests import fleets

NIGHTS = slice(40, 96)
MIN_READINGS = 36


def build_gappy_fleet(households: int = 8) -> Fleet:
    """Readings with gaps, of which a household's eleventh half-hours are never there."""
    kwh = fleets.simulate_readings_kwh(households, NIGHTS.stop)
    kwh[0, :, 10] = np.nan
    kwh[1, 50, :20] = np.nan
    return fleets.build_fleet(kwh)


def build_truth(
    kind_code: list[list[int]], episodes: tuple[InjectedEpisode, ...] = ()
) -> GroundTruth:
    """One row a household, every night counts."""
    kinds = np.array(kind_code, dtype=np.int8)
    return GroundTruth(np.arange(len(kinds)), np.ones(kinds.shape, dtype=bool), kinds, episodes)


def read_metric(table: pl.DataFrame, figure: str, of: str | None = None) -> float:
    return float(
        table.filter(pl.col("metric") == figure, pl.col("subset").eq_missing(of))["value"].item()
    )

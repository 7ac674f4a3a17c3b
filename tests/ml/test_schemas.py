"""Profiles pass between tables and arrays without loss."""

import numpy as np
import polars as pl

from ml.schemas import array_as_readings, readings_as_array


def test_missing_reading_is_nan_in_an_array_and_null_in_a_table() -> None:
    profiles = np.arange(96, dtype=np.float32).reshape(2, 48)
    profiles[1, 3] = np.nan
    series = array_as_readings(profiles)
    assert series.dtype == pl.Array(pl.Float32, 48)
    assert series[1][3] is None
    table = pl.DataFrame({"kwh": series})
    assert np.array_equal(readings_as_array(table).to_numpy(), profiles, equal_nan=True)


def test_no_profiles_make_an_empty_series() -> None:
    series = array_as_readings(np.zeros((0, 48)))
    assert series.dtype == pl.Array(pl.Float32, 48)
    assert series.len() == 0

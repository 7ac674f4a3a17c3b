"""Small fleets that tests build by hand."""

from datetime import date, timedelta

import numpy as np
import polars as pl
import torch

from ml.detector import Detector, DetectorConfig
from ml.features import CONDITIONS, Fleet
from ml.models.network import Windows
from ml.schemas import Holidays, HouseholdNights, Households, Tariffs, Weather
from ml.score import calibrate_detector
from ml.windows import FleetWindows

START = date(2013, 6, 3)
SEED_MODEL = "conditional_autoencoder"


def households(n: int) -> pl.DataFrame:
    return Households.validate(
        pl.DataFrame(
            {
                "household_id": [f"MAC{i:06d}" for i in range(n)],
                "tariff": ["Std", "ToU"] * (n // 2) + ["Std"] * (n % 2),
                "acorn": ["ACORN-A"] * n,
                "acorn_group": ["Affluent"] * n,
            }
        )
    )


def kwh(n: int, nights: int, seed: int = 0) -> np.ndarray:
    """Readings `[n, nights, 48]`: a level a household, an evening peak, noise."""
    rng = np.random.default_rng(seed)
    level = rng.lognormal(-1.8, 0.5, (n, 1, 1))
    shape = 1 + np.exp(-(((np.arange(48) - 38) / 5) ** 2)) * 2
    noise = rng.lognormal(0, 0.4, (n, nights, 48))
    return (level * shape * noise).round(3).astype(np.float32)


def days(readings: np.ndarray, start: date = START) -> pl.DataFrame:
    """The lake's rows of readings `[H, D, 48]`, NaN as null, empty days left out."""
    n, nights, _ = readings.shape
    h, d = np.divmod(np.arange(n * nights), nights)
    flat = pl.Series(readings.reshape(-1, 48), dtype=pl.Array(pl.Float32, 48))
    as_null = flat.cast(pl.List(pl.Float32)).list.eval(pl.element().fill_nan(None))
    frame = pl.DataFrame(
        {
            "night": pl.Series([start + timedelta(days=int(i)) for i in d]),
            "household_id": pl.Series([f"MAC{i:06d}" for i in h]),
            "n_readings": np.isfinite(readings).sum(axis=2, dtype=np.int16).ravel(),
            "kwh": as_null.cast(pl.Array(pl.Float32, 48)),
        }
    )
    kept = frame.filter(np.isfinite(readings).any(axis=2).ravel())
    return HouseholdNights.validate(kept.sort("night", "household_id"))


def references() -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """No weather, holidays or tariffs."""
    return Weather.create_empty(), Holidays.create_empty(), Tariffs.create_empty()


def fleet(readings: np.ndarray, start: date = START) -> Fleet:
    n, nights, _ = readings.shape
    unknown = np.full((n, nights, len(CONDITIONS)), np.nan, dtype=np.float32)
    ids = [f"MAC{i:06d}" for i in range(n)]
    dates = [start + timedelta(days=i) for i in range(nights)]
    return Fleet(ids, dates, readings, np.arange(n), unknown)


def detector(known: Fleet, model: str = SEED_MODEL) -> Detector:
    """A detector that has learned nothing but scales, calibrated on the last 28 nights."""
    built = untrained(known, model)
    calibrate_detector(built, known, n_nights=28, min_readings=36)
    return built


def untrained(known: Fleet, model: str = SEED_MODEL) -> Detector:
    """A detector that has learned nothing but scales."""
    torch.manual_seed(0)
    built = Detector(DetectorConfig(model=model))
    built.network.fit_scales(windows(known, built.network.context_nights))
    return built


def windows(known: Fleet, lead_nights: int) -> Windows:
    """Every household-night with its past."""
    places = torch.arange(known.kwh[..., 0].size)
    return FleetWindows(known, lead_nights, min_readings=36).gather_windows(places)

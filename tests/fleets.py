"""Small fleets that tests build by hand."""

from datetime import date, timedelta

import numpy as np
import polars as pl
import torch

from ml.conditions import CONDITIONS
from ml.fleet import Fleet
from ml.models.base import Windows
from ml.schemas import Holidays, HouseholdNights, Households, Tariffs, Weather, array_as_readings
from ml.scoring.detector import Detector, DetectorConfig
from ml.windows import FleetWindows

FIRST_NIGHT = date(2013, 6, 3)
TEST_MODEL = "conditional_autoencoder"


def build_households(n_households: int) -> pl.DataFrame:
    return Households.validate(
        pl.DataFrame(
            {
                "household_id": [f"MAC{i:06d}" for i in range(n_households)],
                "tariff": ["Std", "ToU"] * (n_households // 2) + ["Std"] * (n_households % 2),
                "acorn": ["ACORN-A"] * n_households,
                "acorn_group": ["Affluent"] * n_households,
            }
        )
    )


def simulate_readings_kwh(n_households: int, n_nights: int, seed: int = 0) -> np.ndarray:
    """Readings `[n, nights, 48]`: a level a household, an evening peak, noise."""
    rng = np.random.default_rng(seed)
    level = rng.lognormal(-1.8, 0.5, (n_households, 1, 1))
    shape = 1 + np.exp(-(((np.arange(48) - 38) / 5) ** 2)) * 2
    noise = rng.lognormal(0, 0.4, (n_households, n_nights, 48))
    return (level * shape * noise).round(3).astype(np.float32)


def build_household_nights(
    readings_kwh: np.ndarray, first_night: date = FIRST_NIGHT
) -> pl.DataFrame:
    """The lake's rows of readings `[H, D, 48]`, NaN as null, empty days left out."""
    n, nights, _ = readings_kwh.shape
    h, d = np.divmod(np.arange(n * nights), nights)
    frame = pl.DataFrame(
        {
            "night": pl.Series([first_night + timedelta(days=int(i)) for i in d]),
            "household_id": pl.Series([f"MAC{i:06d}" for i in h]),
            "n_readings": np.isfinite(readings_kwh).sum(axis=2, dtype=np.int16).ravel(),
            "kwh": array_as_readings(readings_kwh.reshape(-1, 48)),
        }
    )
    kept = frame.filter(np.isfinite(readings_kwh).any(axis=2).ravel())
    return HouseholdNights.validate(kept.sort("night", "household_id"))


def empty_reference_tables() -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """No weather, holidays or tariffs."""
    return Weather.create_empty(), Holidays.create_empty(), Tariffs.create_empty()


def build_fleet(readings_kwh: np.ndarray, first_night: date = FIRST_NIGHT) -> Fleet:
    n, nights, _ = readings_kwh.shape
    unknown = np.full((n, nights, len(CONDITIONS)), np.nan, dtype=np.float32)
    ids = [f"MAC{i:06d}" for i in range(n)]
    dates = [first_night + timedelta(days=i) for i in range(nights)]
    return Fleet(ids, dates, readings_kwh, np.arange(n), unknown)


def build_detector(calibration_fleet: Fleet, model: str = TEST_MODEL) -> Detector:
    """A detector that has learned nothing but scales, calibrated on the last 28 nights."""
    built = build_untrained_detector(calibration_fleet, model)
    built.calibrate(calibration_fleet, n_nights=28, min_readings=36)
    return built


def build_untrained_detector(scaling_fleet: Fleet, model: str = TEST_MODEL) -> Detector:
    """A detector that has learned nothing but scales."""
    torch.manual_seed(0)
    built = Detector(DetectorConfig(model=model))
    built.network.fit_scales(build_windows(scaling_fleet, built.network.context_nights))
    return built


def build_windows(fleet: Fleet, context_nights: int) -> Windows:
    """Every household-night with its past."""
    places = torch.arange(fleet.kwh[..., 0].size)
    return FleetWindows(fleet, context_nights, min_readings=36).gather_windows(places)

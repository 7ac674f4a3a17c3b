"""Compares a simulated fleet with a real one: a table of statistics, and a picture.

    .venv/bin/python tests/benchmarks/fleet_comparison.py ../shared/lcl [OUT.png]

The real one is a year of readings as Kaggle delivers them, `DIR/halfhourly/*.parquet`.
"""

import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl

from ml.plots.simulation import correlate_consecutive_days, draw_fleet_comparison
from ml.simulation.environment import FleetConfig, Floats, build_environment
from ml.simulation.fleet import simulate_fleet_kwh

YEAR = 2013
COMPARISON_CONFIG = FleetConfig(households=225, days=365, start=datetime(YEAR, 1, 1).date(), seed=0)


def load_real_kwh(source: Path) -> Floats:
    """Return the readings of the year, `[H, 365, 48]`, NaN where missing."""
    half_hour = (pl.col("tstp") - datetime(YEAR, 1, 1)).dt.total_minutes() // 30
    rows = (
        pl.scan_parquet(source / "halfhourly/*.parquet")
        .select(
            h=pl.col("LCLid").rank("dense") - 1,
            half_hour=half_hour,
            kwh=pl.col("energy(kWh/hh)").cast(pl.Float32),
        )
        .filter(pl.col("half_hour").is_between(0, 365 * 48 - 1))
        .collect()
    )
    h = rows["h"].to_numpy()
    year_kwh = np.full((int(h.max()) + 1, 365 * 48), np.nan, dtype=np.float32)
    year_kwh[h, rows["half_hour"].to_numpy()] = rows["kwh"].to_numpy()
    return year_kwh.reshape(-1, 365, 48)


def compute_statistics(kwh: Floats) -> dict[str, float]:
    """Return statistics by name that two fleets `[H, D, 48]` should share.

    Of statistics of households the median; of households with 300 complete days or more.
    """
    complete = kwh[(~np.isnan(kwh)).all(axis=2).sum(axis=1) > 300]
    flat = complete.reshape(len(complete), -1)
    daily_kwh = complete.sum(axis=2)
    readings = kwh[~np.isnan(kwh)]
    level = np.nanmean(kwh, axis=(1, 2))
    profile = np.nanmean(kwh, axis=(0, 1))
    # June to August; December to February.
    summer = np.nanmean(daily_kwh[:, 151:243], axis=1)
    winter = np.nanmean(np.hstack([daily_kwh[:, :59], daily_kwh[:, 334:]]), axis=1)
    fleet = {f"reading, quantile {q}": np.quantile(readings, q) for q in (0.1, 0.5, 0.9, 0.99)}
    fleet |= {
        "reading, quantile 0.999": np.quantile(readings, 0.999),
        "mean reading": readings.mean(),
        "share of zeros": (readings == 0).mean(),
        "share below 0.02 kWh": (readings < 0.02).mean(),
        "share above 1 kWh": (readings > 1).mean(),
        "mean level, households' 5 %": np.quantile(level, 0.05),
        "mean level, households' 50 %": np.median(level),
        "mean level, households' 95 %": np.quantile(level, 0.95),
        "mean at 03:00-05:00": profile[6:10].mean(),
        "mean at 07:00-09:00": profile[14:18].mean(),
        "mean at 11:00-15:00": profile[22:30].mean(),
        "mean at 18:00-21:00": profile[36:42].mean(),
        "winter / summer": winter.mean() / summer.mean(),
    }
    return {
        name: float(value)
        for name, value in (
            fleet | _compute_household_statistics(complete, flat, daily_kwh)
        ).items()
    }


def _compute_household_statistics(
    households_kwh: Floats, half_hourly_kwh: Floats, daily_kwh: Floats
) -> dict[str, float]:
    level = np.nanmean(half_hourly_kwh, axis=1)
    usual = np.nanmedian(daily_kwh, axis=1, keepdims=True)
    return {
        "baseload (10 % of readings) / mean": _finite_median(
            np.nanquantile(half_hourly_kwh, 0.1, axis=1) / level
        ),
        "99 % of readings / mean": _finite_median(
            np.nanquantile(half_hourly_kwh, 0.99, axis=1) / level
        ),
        "std / mean of readings": _finite_median(np.nanstd(half_hourly_kwh, axis=1) / level),
        "std / mean of days": _finite_median(
            np.nanstd(daily_kwh, axis=1) / np.nanmean(daily_kwh, axis=1)
        ),
        "autocorrelation, 1 half-hour": _finite_median(
            compute_autocorrelation(half_hourly_kwh, lag=1)
        ),
        "autocorrelation, 4 half-hours": _finite_median(
            compute_autocorrelation(half_hourly_kwh, lag=4)
        ),
        "autocorrelation of days, 1 day": _finite_median(compute_autocorrelation(daily_kwh, lag=1)),
        "autocorrelation of days, 7 days": _finite_median(
            compute_autocorrelation(daily_kwh, lag=7)
        ),
        "correlation of consecutive days": _finite_median(
            correlate_consecutive_days(households_kwh)
        ),
        "share of days below 0.4 of usual": float(
            (daily_kwh < 0.4 * usual)[~np.isnan(daily_kwh)].mean()
        ),
    }


def _finite_median(values: Floats) -> float:
    return float(np.nanmedian(values))


def compute_autocorrelation(series: Floats, lag: int) -> Floats:
    """Return the correlation `[H]` of series `[H, T]` with themselves `lag` steps later.

    Over the pairs of which neither value is missing.
    """
    before = series[:, :-lag]
    after = series[:, lag:]
    is_pair = ~np.isnan(before) & ~np.isnan(after)
    before = np.where(is_pair, before, np.nan)
    after = np.where(is_pair, after, np.nan)
    before = before - np.nanmean(before, axis=1, keepdims=True)
    after = after - np.nanmean(after, axis=1, keepdims=True)
    power = np.nansum(before**2, axis=1) * np.nansum(after**2, axis=1)
    return np.asarray(np.nansum(before * after, axis=1) / np.sqrt(power))


def main() -> None:
    """Print the table, and draw the picture if a file is named."""
    real = load_real_kwh(Path(sys.argv[1]))
    simulated = simulate_fleet_kwh(COMPARISON_CONFIG)
    real_statistics = compute_statistics(real)
    simulated_statistics = compute_statistics(simulated)
    print(f"{'':36}{'real':>10}{'simulated':>11}")
    for name, value in real_statistics.items():
        print(f"{name:36}{value:10.3f}{simulated_statistics[name]:11.3f}")
    if len(sys.argv) > 2:
        is_free_day = build_environment(COMPARISON_CONFIG).is_free_day[1:-1]
        draw_fleet_comparison(real, simulated, is_free_day).savefig(sys.argv[2], dpi=70)


if __name__ == "__main__":
    main()

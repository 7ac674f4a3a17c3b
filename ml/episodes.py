"""Episodes: alerts of a household that belong together.

The one definition, used by the result table, the calibration of the alert budget and the
benchmark: an alert belongs to its household's episode if it comes at most `SILENCE_NIGHTS` after
the last alert of that episode; otherwise it opens a new one.
"""

from datetime import date, timedelta
from typing import Final

import numpy as np
import polars as pl

from ml.arrays import BoolArray
from ml.schemas import Episodes

SILENCE_NIGHTS: Final = 14
"""Nights without an alert after which an episode is over.

Few households make most false alarms (docs/detector.md), so a budget counts episodes, one open
case a household, and not nights. Two weeks: chosen."""


def find_episode_starts(is_alert: BoolArray) -> BoolArray:
    """Return which alerts open an episode, in the shape `[H, D]` of the alerts.

    D are consecutive nights. Those before the first are taken to be without alerts.
    """
    padded = np.pad(is_alert, ((0, 0), (SILENCE_NIGHTS, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, SILENCE_NIGHTS, axis=1)
    # The window that ends before each night: the last window would need a night that is not there.
    had_alert_before = windows[:, :-1].any(axis=-1)
    return np.asarray(is_alert & ~had_alert_before)


def build_episodes(anomalies: pl.DataFrame, last_scored: date) -> pl.DataFrame:
    """Return the table `episodes` of flagged household-nights in any order.

    `anomalies` has `household_id, night, excess_kwh, reason`. An episode is open while the last
    scored night lies fewer than `SILENCE_NIGHTS` after its last alert. Its reason is the most
    frequent one of its nights, of equally frequent ones the first.
    """
    nights_since_alert = (
        pl.col("night").diff().over("household_id", order_by="night").dt.total_days()
    )
    first_open_night = last_scored - timedelta(days=SILENCE_NIGHTS - 1)
    episodes = (
        anomalies.sort("household_id", "night")
        .with_columns(opens=(nights_since_alert > SILENCE_NIGHTS).fill_null(value=True))
        .with_columns(episode=pl.col("opens").cum_sum())
        .group_by("household_id", "episode", maintain_order=True)
        .agg(
            first_night=pl.col("night").min(),
            last_night=pl.col("night").max(),
            nights=pl.len(),
            excess_kwh=pl.col("excess_kwh").sum(),
            reason=pl.col("reason").mode(maintain_order=True).first(),
        )
        .with_columns(is_open=pl.col("last_night") >= first_open_night)
    )
    return Episodes.validate(episodes.select(Episodes.column_names()), cast=True)

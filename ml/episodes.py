"""Anomalies of a household joined across nights into episodes."""

from datetime import date, timedelta
from typing import Final

import polars as pl

from ml.schemas import Episodes

SILENCE_NIGHTS: Final = 14


def build_episodes(anomalies: pl.DataFrame, last_scored: date) -> pl.DataFrame:
    """Join flagged nights that lie at most `SILENCE_NIGHTS` apart.

    `anomalies` has `household_id, night, excess_kwh, reason`. An episode is open until as many
    nights have passed without a flag; its reason is the most frequent one, the first of equals.
    """
    gap = pl.col("night").diff().over("household_id", order_by="night").dt.total_days()
    joined = (
        anomalies.sort("household_id", "night")
        .with_columns(is_first=(gap > SILENCE_NIGHTS).fill_null(value=True))
        .with_columns(episode_number=pl.col("is_first").cum_sum())
        .group_by("household_id", "episode_number", maintain_order=True)
        .agg(
            first_night=pl.col("night").min(),
            last_night=pl.col("night").max(),
            nights=pl.len(),
            excess_kwh=pl.col("excess_kwh").sum(),
            reason=pl.col("reason").mode(maintain_order=True).first(),
        )
        .with_columns(is_open=pl.col("last_night") > last_scored - timedelta(days=SILENCE_NIGHTS))
    )
    return Episodes.validate(joined.select(Episodes.column_names()), cast=True)

"""The fleet of a span of nights, as training and scoring read it."""

from datetime import date

import polars as pl

from ml.features import Fleet, fleet
from tasks import lake


def load_fleet(first: date, last: date) -> Fleet:
    """Every registered household over the nights `first` to `last`, read from the lake."""
    nights = pl.date_range(first, last, eager=True).to_list()
    days = lake.collect(lake.scan_days(first, last))
    register = lake.read("households").sort("household_id")
    return fleet(
        days, nights, register, lake.read("weather"), lake.read("holidays"), lake.read("tariffs")
    )


def common_nights() -> tuple[date, date]:
    """The first and last night of which at least half as many report as on the fullest.

    Raises:
        UserError: nothing has been ingested.
    """
    lake.extent()
    counts = lake.collect(lake.scan("days").group_by("night").agg(households=pl.len()))
    common = counts.filter(2 * pl.col("households") >= pl.max("households"))
    first, last = common.select(first=pl.min("night"), last=pl.max("night")).row(0)
    return first, last


def last_common_night() -> date:
    """The last night of which at least half as many households report as on the fullest.

    Raises:
        UserError: nothing has been ingested.
    """
    return common_nights()[1]

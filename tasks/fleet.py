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

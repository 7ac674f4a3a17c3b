"""Load the fleet of a span of nights, as training and scoring read it."""

from calendar import monthrange
from datetime import date
from typing import Final

import polars as pl

from ml.fleet import Fleet, build_fleet
from tasks import storage

WELL_REPORTED_SHARE: Final = 0.5
"""Share of the fullest night's households that a well reported night has at least. Chosen: most of
the fleet. The first weeks of a trial and a last, half-delivered night have few households."""


def load_fleet(first_night: date, last_night: date, *, only_reporting: bool = False) -> Fleet:
    """Return the fleet over the nights `first_night` to `last_night`, both included.

    It holds every registered household, sorted by id, or with `only_reporting` those that have a
    reading in the span. Nights that the lake lacks are there, without readings.
    """
    nights = pl.date_range(first_night, last_night, eager=True).to_list()
    register = storage.read_table("households").sort("household_id")
    if only_reporting:
        household_nights = storage.scan_household_nights(first_night, last_night)
        reporting = household_nights.filter(pl.col("n_readings") > 0)
        ids = storage.collect_with_retry(reporting.select(pl.col("household_id").unique()))
        register = register.join(ids, on="household_id", how="semi", maintain_order="left")
    months = sorted({night.replace(day=1) for night in nights})
    # A month at a time: all profiles beside the array that they fill would be twice its memory.
    household_nights_by_month = (
        storage.collect_with_retry(
            storage.scan_household_nights(
                max(month, first_night), _last_night_of_month(month, last_night)
            )
        )
        for month in months
    )
    return build_fleet(
        household_nights_by_month,
        nights,
        register,
        storage.read_table("weather"),
        storage.read_table("holidays"),
        storage.read_table("tariffs"),
    )


def _last_night_of_month(month: date, last_night: date) -> date:
    """Return the last day of a month, or `last_night` if that comes first."""
    n_days = monthrange(month.year, month.month)[1]
    return min(month.replace(day=n_days), last_night)


def find_well_reported_range() -> tuple[date, date]:
    """Return the first and the last night that at least half as many report as the fullest night.

    Raises:
        UserError: nothing has been ingested.
    """
    storage.read_night_range()  # raises where the lake is empty
    counts = storage.collect_with_retry(
        storage.scan_table("days").group_by("night").agg(n_households=pl.len())
    )
    min_households = WELL_REPORTED_SHARE * pl.max("n_households")
    well_reported = counts.filter(pl.col("n_households") >= min_households)
    first, last = well_reported.select(first=pl.min("night"), last=pl.max("night")).row(0)
    return first, last


def find_last_well_reported_night() -> date:
    """Return the last night that at least half as many households report as the fullest night.

    Raises:
        UserError: nothing has been ingested.
    """
    return find_well_reported_range()[1]

"""The fleet of a span of nights, as training and scoring read it."""

from calendar import monthrange
from datetime import date

import polars as pl

from ml.fleet import Fleet, build_fleet
from tasks import storage


def load_fleet(first_night: date, last_night: date, *, only_reporting: bool = False) -> Fleet:
    """Every registered household over the nights `first` to `last`, read from the lake.

    Or those alone that have a reading there.
    """
    nights = pl.date_range(first_night, last_night, eager=True).to_list()
    register = storage.read_table("households").sort("household_id")
    if only_reporting:
        seen = storage.scan_household_nights(first_night, last_night).filter(
            pl.col("n_readings") > 0
        )
        ids = storage.collect_with_retry(seen.select(pl.col("household_id").unique()))
        register = register.join(ids, on="household_id", how="semi", maintain_order="left")
    months = sorted({night.replace(day=1) for night in nights})
    # A month at a time: all days beside the array that they fill would be twice its memory.
    days = (
        storage.collect_with_retry(
            storage.scan_household_nights(
                max(month, first_night), _last_night_of_month(month, last_night)
            )
        )
        for month in months
    )
    return build_fleet(
        days,
        nights,
        register,
        storage.read_table("weather"),
        storage.read_table("holidays"),
        storage.read_table("tariffs"),
    )


def _last_night_of_month(month: date, last_night: date) -> date:
    """The last day of a month, or `last` if that comes first."""
    return min(month.replace(day=monthrange(month.year, month.month)[1]), last_night)


def find_well_reported_range() -> tuple[date, date]:
    """The first and last night of which at least half as many report as on the fullest.

    Raises:
        UserError: nothing has been ingested.
    """
    storage.read_night_range()
    counts = storage.collect_with_retry(
        storage.scan_table("days").group_by("night").agg(households=pl.len())
    )
    common = counts.filter(2 * pl.col("households") >= pl.max("households"))
    first, last = common.select(first=pl.min("night"), last=pl.max("night")).row(0)
    return first, last


def find_last_well_reported_night() -> date:
    """The last night of which at least half as many households report as on the fullest.

    Raises:
        UserError: nothing has been ingested.
    """
    return find_well_reported_range()[1]

"""The contract of every table: names, types, keys and bounds."""

from typing import Final

import dataframely as dy
import polars as pl

HALF_HOURS: Final = 48
"""Settlement periods of a UTC day; days of a clock change have 48 too, since stamps are UTC."""
SUPPLY_LIMIT_KWH: Final = 12.0
"""Most that a household's supply can deliver in a half-hour: 100 A single phase at 240 V, 24 kW."""
MIN_READINGS: Final = 36
"""Readings, of 48, that a night needs to be judged at all; default of METERWATCH_MIN_READINGS."""
SCORE_STATUSES: Final = ("scored", "cold_start", "incomplete", "missing")
ANOMALY_REASONS: Final = (
    "spike",
    "outage",
    "stuck",
    "drop",
    "rise",
    "night_load",
    "shifted",
    "unusual_shape",
)
QUARANTINE_RULES: Final = (
    "null",
    "not_a_number",
    "sentinel",
    "bad_timestamp",
    "off_grid",
    "negative",
    "above_limit",
    "no_household",
    "duplicate",
    "superseded",
)


class HouseholdNights(dy.Schema):
    """The lake: one row a household-day, 48 half-hours from 00:00 UTC, null where missing.

    `n_readings` counts them: whoever asks for gaps need not read a trial of readings.
    """

    night = dy.Date(primary_key=True)
    household_id = dy.String(primary_key=True, min_length=1)
    n_readings = dy.Int16(min=0, max=HALF_HOURS)
    kwh = dy.Array(dy.Float32(nullable=True), HALF_HOURS)


def readings_as_array(household_nights: pl.DataFrame) -> pl.Series:
    """The readings of household-days [n, 48], NaN instead of null."""
    flat = household_nights.get_column("kwh").reshape((-1,)).fill_null(float("nan"))
    return flat.reshape((household_nights.height, HALF_HOURS))


class Quarantine(dy.Schema):
    """Delivered rows that were set aside, the value as delivered."""

    household_id = dy.String(nullable=True)
    ts_utc = dy.Datetime(time_unit="us", nullable=True)
    value = dy.String(nullable=True)
    rule = dy.Enum(QUARANTINE_RULES)
    file = dy.String()


class Households(dy.Schema):
    """The register."""

    household_id = dy.String(primary_key=True, min_length=1)
    tariff = dy.String(nullable=True)
    acorn = dy.String(nullable=True)
    acorn_group = dy.String(nullable=True)


class Weather(dy.Schema):
    """Hourly weather, temperature in degrees Celsius, humidity as a share."""

    ts_utc = dy.Datetime(time_unit="us", primary_key=True)
    temperature_c = dy.Float32(nullable=True)
    humidity = dy.Float32(nullable=True, min=0, max=1)


class Holidays(dy.Schema):
    """Bank holidays."""

    day = dy.Date(primary_key=True)
    name = dy.String(nullable=True)


class Tariffs(dy.Schema):
    """The price signal of the time-of-use tariff, by half-hour."""

    ts_utc = dy.Datetime(time_unit="us", primary_key=True)
    price = dy.Enum(("Low", "Normal", "High"))


class Scores(dy.Schema):
    """One row for every registered household and night."""

    household_id = dy.String(primary_key=True)
    night = dy.Date(primary_key=True)
    status = dy.Enum(SCORE_STATUSES)
    n_readings = dy.Int16(min=0, max=HALF_HOURS)
    score = dy.Float32(nullable=True)
    p_value = dy.Float32(nullable=True, min=0, max=1)
    evidence = dy.Float32(nullable=True, min=0)
    is_anomaly = dy.Bool()
    rank = dy.Int32(nullable=True, min=1)
    actual_kwh = dy.Float32(nullable=True)
    expected_kwh = dy.Float32(nullable=True)
    reason = dy.Enum(ANOMALY_REASONS, nullable=True)
    model_version = dy.String()


class Anomalies(dy.Schema):
    """The flagged household-nights with their half-hours; times and profiles from 00:00 UTC."""

    household_id = dy.String(primary_key=True)
    night = dy.Date(primary_key=True)
    start_utc = dy.Datetime(time_unit="us")
    end_utc = dy.Datetime(time_unit="us")
    actual_kwh = dy.List(dy.Float32(nullable=True))
    expected_kwh = dy.List(dy.Float32(nullable=True))
    half_hour_score = dy.List(dy.Float32(nullable=True))
    excess_kwh = dy.Float32()
    score = dy.Float32()
    p_value = dy.Float32()
    reason = dy.Enum(ANOMALY_REASONS)
    rank = dy.Int32(min=1)
    model_version = dy.String()


class Episodes(dy.Schema):
    """Anomalies of a household joined across nights; the partition is the first night."""

    household_id = dy.String(primary_key=True)
    first_night = dy.Date(primary_key=True)
    last_night = dy.Date()
    nights = dy.Int32(min=1)
    excess_kwh = dy.Float32()
    reason = dy.Enum(ANOMALY_REASONS)
    is_open = dy.Bool()


class Nights(dy.Schema):
    """One row a scored night: what the fleet did, and how many alerts it came to."""

    night = dy.Date(primary_key=True)
    scored = dy.Int32(min=0)
    flagged = dy.Int32(min=0)
    opened = dy.Int32(min=0)
    opened_per_1000 = dy.Float32(min=0)
    alert_budget = dy.Float32(min=0)
    fleet_shift = dy.Float32()
    tail_inflation = dy.Float32(min=0)
    calibration_tail_inflation = dy.Float32(min=0)
    calibration_size = dy.Int32(min=0)
    model_version = dy.String()


class ScoreCacheRows(dy.Schema):
    """What a night came to by itself, kept so that it need not be computed again."""

    household_id = dy.String(primary_key=True)
    night = dy.Date(primary_key=True)
    log_odds = dy.Float32(nullable=True)
    surprisal = dy.Float64(nullable=True)
    fingerprint = dy.String()


class InjectedAnomalies(dy.Schema):
    """What a simulation planted: one row a household-night."""

    household_id = dy.String(primary_key=True)
    night = dy.Date(primary_key=True)
    kind = dy.String()


class Deliveries(dy.Schema):
    """The ledger of delivered files: what each held and what became of it.

    `rows_repeated` of the kept rows said what the lake already held.
    """

    delivery = dy.String(primary_key=True)
    file = dy.String()
    ingested_at_utc = dy.Datetime(time_unit="us")
    rows_in = dy.Int64(min=0)
    rows_kept = dy.Int64(min=0)
    rows_quarantined = dy.Int64(min=0)
    rows_repeated = dy.Int64(min=0)
    households = dy.Int64(min=0)
    first_ts_utc = dy.Datetime(time_unit="us", nullable=True)
    last_ts_utc = dy.Datetime(time_unit="us", nullable=True)


class DeliverySpans(dy.Schema):
    """From when to when a delivered file has readings of each household it holds."""

    delivery = dy.String(primary_key=True)
    household_id = dy.String(primary_key=True, min_length=1)
    first_ts_utc = dy.Datetime(time_unit="us")
    last_ts_utc = dy.Datetime(time_unit="us")


class Runs(dy.Schema):
    """What ran, when, and what it did; `rows_*` are delivered readings and null for other verbs."""

    run_id = dy.String(primary_key=True)
    verb = dy.String()
    started_utc = dy.Datetime(time_unit="us")
    finished_utc = dy.Datetime(time_unit="us")
    state = dy.Enum(("completed", "failed"))
    first_night = dy.Date(nullable=True)
    last_night = dy.Date(nullable=True)
    rows_in = dy.Int64(nullable=True)
    rows_kept = dy.Int64(nullable=True)
    rows_quarantined = dy.Int64(nullable=True)
    model_version = dy.String(nullable=True)
    message = dy.String(nullable=True)

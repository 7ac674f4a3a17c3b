"""Every table: its columns, types, keys and bounds, and how an older file is read.

A column, reason, status or rule can be added without touching what an earlier release wrote:
closed vocabularies are strings in files and checked when a table is written; a column that an
older file lacks is null there; a column that was renamed is found by `FORMER_COLUMN_NAMES`.
"""

from typing import Final

import dataframely as dy
import polars as pl

from ml.arrays import FloatArray

HALF_HOURS: Final = 48
"""Settlement periods of a UTC day; days of a clock change have 48 too, since stamps are UTC."""
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
TARIFF_PRICES: Final = ("Low", "Normal", "High")
RUN_STATES: Final = ("completed", "failed")

FORMER_COLUMN_NAMES: Final[dict[str, dict[str, str]]] = {
    "deliveries": {"rows_quarantined": "rows_set_aside"},
    "runs": {"rows_quarantined": "rows_set_aside"},
    "nights": {
        "fleet_shift": "common_movement",
        "tail_inflation": "tail_height",
        "tail_inflation_training": "tail_height_learnt",
    },
}
"""Of a table, the columns that release 0.1.0 wrote under another name."""


def _one_of(vocabulary: tuple[str, ...]) -> str:
    """Return the regular expression of a closed vocabulary."""
    return f"^({'|'.join(vocabulary)})$"


class HouseholdNights(dy.Schema):
    """The lake: one row a household-night, 48 readings from 00:00 UTC, null where missing.

    `n_readings` counts them, so that a question about gaps need not read any.
    """

    night = dy.Date(primary_key=True)
    household_id = dy.String(primary_key=True, min_length=1)
    n_readings = dy.Int16(min=0, max=HALF_HOURS)
    kwh = dy.Array(dy.Float32(nullable=True), HALF_HOURS)


def readings_as_array(household_nights: pl.DataFrame) -> pl.Series:
    """Return the profiles of household-nights as an array series `[n, 48]`, NaN instead of null."""
    flat = household_nights.get_column("kwh").reshape((-1,)).fill_null(float("nan"))
    return flat.reshape((household_nights.height, HALF_HOURS))


def array_as_readings(profiles: FloatArray) -> pl.Series:
    """Return profiles `[n, 48]` as an array series in single, null instead of NaN."""
    flat = pl.Series(profiles.astype("float32", copy=False).ravel()).fill_nan(None)
    return flat.reshape((len(profiles), HALF_HOURS))


class Quarantine(dy.Schema):
    """Delivered rows that broke a rule, the value as delivered."""

    household_id = dy.String(nullable=True)
    ts_utc = dy.Datetime(time_unit="us", nullable=True)
    value = dy.String(nullable=True)
    rule = dy.String(regex=_one_of(QUARANTINE_RULES))
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
    price = dy.String(regex=_one_of(TARIFF_PRICES))


class Scores(dy.Schema):
    """One row for every registered household and night."""

    household_id = dy.String(primary_key=True)
    night = dy.Date(primary_key=True)
    status = dy.String(regex=_one_of(SCORE_STATUSES))
    n_readings = dy.Int16(min=0, max=HALF_HOURS)
    score = dy.Float32(nullable=True)
    p_value = dy.Float32(nullable=True, min=0, max=1)
    evidence = dy.Float32(nullable=True, min=0)
    is_anomaly = dy.Bool()
    rank = dy.Int32(nullable=True, min=1)
    actual_kwh = dy.Float32(nullable=True)
    expected_kwh = dy.Float32(nullable=True)
    reason = dy.String(regex=_one_of(ANOMALY_REASONS), nullable=True)
    model_version = dy.String()


class Anomalies(dy.Schema):
    """The flagged household-nights with their half-hours, from 00:00 UTC."""

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
    reason = dy.String(regex=_one_of(ANOMALY_REASONS))
    rank = dy.Int32(min=1)
    model_version = dy.String()


class Episodes(dy.Schema):
    """Alerts of a household that belong together (`ml/episodes.py`), stored by first night."""

    household_id = dy.String(primary_key=True)
    first_night = dy.Date(primary_key=True)
    last_night = dy.Date()
    nights = dy.Int32(min=1)
    excess_kwh = dy.Float32()
    reason = dy.String(regex=_one_of(ANOMALY_REASONS))
    is_open = dy.Bool()


class Nights(dy.Schema):
    """One row a scored night: its alerts and the fleet's movement."""

    night = dy.Date(primary_key=True)
    scored = dy.Int32(min=0)
    flagged = dy.Int32(min=0)
    opened = dy.Int32(min=0)
    opened_per_1000 = dy.Float32(min=0)
    alert_budget = dy.Float32(min=0)
    fleet_shift = dy.Float32()
    tail_inflation = dy.Float32(min=0)
    tail_inflation_training = dy.Float32(min=0)
    calibration_size = dy.Int32(min=0)
    model_version = dy.String()


class ScoreCacheRows(dy.Schema):
    """Log odds and surprisal of household-nights, valid while the fingerprint is the same."""

    household_id = dy.String(primary_key=True)
    night = dy.Date(primary_key=True)
    log_odds = dy.Float32(nullable=True)
    surprisal = dy.Float64(nullable=True)
    fingerprint = dy.String()


class InjectedAnomalies(dy.Schema):
    """What a simulation injected, one row a household-night; `truth.parquet`."""

    household_id = dy.String(primary_key=True)
    night = dy.Date(primary_key=True)
    kind = dy.String()


class Deliveries(dy.Schema):
    """The ledger of delivered files: what each held and what became of its rows.

    `rows_repeated` counts the kept rows whose reading the lake already held.
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
    """First and last reading of each household in a delivered file."""

    delivery = dy.String(primary_key=True)
    household_id = dy.String(primary_key=True, min_length=1)
    first_ts_utc = dy.Datetime(time_unit="us")
    last_ts_utc = dy.Datetime(time_unit="us")


class Runs(dy.Schema):
    """One row a run; `rows_*` count delivered readings and are null for other verbs than ingest."""

    run_id = dy.String(primary_key=True)
    verb = dy.String()
    started_utc = dy.Datetime(time_unit="us")
    finished_utc = dy.Datetime(time_unit="us")
    state = dy.String(regex=_one_of(RUN_STATES))
    first_night = dy.Date(nullable=True)
    last_night = dy.Date(nullable=True)
    rows_in = dy.Int64(nullable=True)
    rows_kept = dy.Int64(nullable=True)
    rows_quarantined = dy.Int64(nullable=True)
    model_version = dy.String(nullable=True)
    message = dy.String(nullable=True)

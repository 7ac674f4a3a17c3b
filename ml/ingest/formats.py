"""Recognise the tables that people deliver by their columns alone, and select readings of them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

import polars as pl

from ml.errors import UserError
from ml.ingest.timestamps import select_timestamp

TableKind = Literal["readings", "households", "weather", "holidays", "tariffs", "other"]
READING_COLUMNS: Final = ("household_id", "ts_utc", "kwh")
HOUSEHOLD_ATTRIBUTES: Final = ("tariff", "acorn", "acorn_group")
HOUSEHOLD_ID_COLUMNS: Final = frozenset({"LCLid", "household_id"})
"""A table with one of these was meant for us: if its format is unknown, that is a failure."""
MAX_QUOTED_COLUMNS: Final = 6
"""Columns that a message lists; chosen, so that it stays one line."""


@dataclass(frozen=True)
class TableFormat:
    """The columns of a delivered table: our name of each against the delivered one.

    `title` names the format in messages. Further columns are a mismatch unless
    `allows_extra_columns`.
    """

    kind: TableKind
    title: str
    required_columns: dict[str, str]
    optional_columns: dict[str, str] = field(default_factory=dict)
    allows_extra_columns: bool = False

    def matches_columns(self, columns: frozenset[str]) -> bool:
        """Return whether a table with these (clean) column names has this format."""
        required = frozenset(self.required_columns.values())
        expected = required | frozenset(self.optional_columns.values())
        return required <= columns and (self.allows_extra_columns or columns <= expected)

    @property
    def expected_columns(self) -> str:
        """The delivered column names for a message, optional ones in brackets."""
        optional = "".join(f" [{name}]" for name in self.optional_columns.values())
        return ", ".join(self.required_columns.values()) + optional


_DATASTORE_ATTRIBUTES: Final = dict(
    zip(HOUSEHOLD_ATTRIBUTES, ("stdorToU", "Acorn", "Acorn_grouped"), strict=True)
)
# Column names come clean: this one has lost the trailing space of "KWH/hh (per half hour) ".
READING_FORMATS: Final = (
    TableFormat(
        "readings",
        "Kaggle",
        dict(zip(READING_COLUMNS, ("LCLid", "tstp", "energy(kWh/hh)"), strict=True)),
    ),
    *(
        TableFormat(
            "readings",
            "Datastore",
            dict(zip(READING_COLUMNS, ("LCLid", "DateTime", kwh), strict=True)),
            _DATASTORE_ATTRIBUTES,
        )
        for kwh in ("KWH/hh (per half hour)", "KWH/hh")
    ),
    TableFormat("readings", "Meterwatch", {name: name for name in READING_COLUMNS}),
)
TABLE_FORMATS: Final = (
    *READING_FORMATS,
    TableFormat(
        "households", "households", {"household_id": "LCLid", **_DATASTORE_ATTRIBUTES}, {"": "file"}
    ),
    TableFormat(
        "households", "households", {name: name for name in ("household_id", *HOUSEHOLD_ATTRIBUTES)}
    ),
    TableFormat(
        "weather",
        "weather",
        {"ts_utc": "time", "temperature_c": "temperature", "humidity": "humidity"},
        allows_extra_columns=True,
    ),
    TableFormat(
        "weather", "weather", {name: name for name in ("ts_utc", "temperature_c", "humidity")}
    ),
    TableFormat("holidays", "bank holidays", {"day": "Bank holidays", "name": "Type"}),
    TableFormat("holidays", "bank holidays", {"day": "day", "name": "name"}),
    TableFormat("tariffs", "tariffs", {"ts_utc": "TariffDateTime", "price": "Tariff"}),
    TableFormat("tariffs", "tariffs", {"ts_utc": "ts_utc", "price": "price"}),
    TableFormat(
        "other",
        "Acorn profiles",
        {name: name for name in ("MAIN CATEGORIES", "CATEGORIES", "REFERENCE")},
        allows_extra_columns=True,
    ),
    TableFormat(
        "other",
        "injected anomalies",
        {name: name for name in ("household_id", "night", "kind")},
        allows_extra_columns=True,
    ),
)


def clean_column_name(column: str) -> str:
    """Return a header cell without padding, quotes and byte-order mark."""
    return column.strip(' \t\r\n"\ufeff')


def recognise_format(columns: Iterable[str]) -> TableFormat:
    """Return the format of a table with these (clean) column names.

    Raises:
        UserError: no format fits; the message says what differs from the nearest one of readings.
    """
    names = list(columns)
    for table_format in TABLE_FORMATS:
        if table_format.matches_columns(frozenset(names)):
            return table_format
    raise UserError(_describe_mismatch(names))


def _describe_mismatch(columns: list[str]) -> str:
    nearest = max(
        READING_FORMATS,
        key=lambda each: len(set(each.required_columns.values()).intersection(columns)),
    )
    required = list(nearest.required_columns.values())
    expected = [*required, *nearest.optional_columns.values()]
    missing = [name for name in required if name not in columns]
    # One column under another name is a slip in a table of readings; two make it another table.
    if len(missing) > 1:
        return (
            f"no readings: its columns are {_quote_columns(columns)}; "
            f"expected {READING_FORMATS[0].expected_columns}"
        )
    unknown = [name for name in columns if name not in expected]
    problems = [f"unknown column {_quote_columns(unknown)}"] if unknown else []
    problems += [f"no column {_quote_columns(missing)}"] if missing else []
    return f"{', '.join(problems)}; expected {nearest.expected_columns}"


def _quote_columns(columns: list[str]) -> str:
    n_more = len(columns) - MAX_QUOTED_COLUMNS
    quoted = ", ".join(repr(name) for name in columns[:MAX_QUOTED_COLUMNS])
    return f"{quoted} and {n_more} more" if n_more > 0 else quoted


def select_readings(frame: pl.LazyFrame, table_format: TableFormat) -> pl.LazyFrame:
    """Select a table of readings under our names, and its optional columns as text.

    Returns:
        `household_id` (text), `timestamp` (text, or Datetime in us and UTC where it was delivered
        as one), `value` as delivered, and `kwh` (Float64, null where the value is no number).

    Raises:
        UserError: a column holds something else than times or numbers.
    """
    dtypes = frame.collect_schema()
    household, timestamp, kwh = (table_format.required_columns[name] for name in READING_COLUMNS)
    optional = [
        pl.col(delivered_name).cast(pl.String).alias(name)
        for name, delivered_name in table_format.optional_columns.items()
        if delivered_name in dtypes
    ]
    return frame.select(
        pl.col(household).cast(pl.String).alias("household_id"),
        select_timestamp(timestamp, dtypes[timestamp]),
        pl.col(kwh).alias("value"),
        _number_expression(kwh, dtypes[kwh]).alias("kwh"),
        *optional,
    )


def _number_expression(column: str, dtype: pl.DataType) -> pl.Expr:
    """Return a column as Float64, null where its text is no number; refuse other types."""
    if dtype == pl.String:
        # Not strict: a cell that is no number becomes null, which a rule finds row by row.
        return pl.col(column).str.strip_chars().cast(pl.Float64, strict=False)
    if dtype.is_numeric() or dtype == pl.Null:
        return pl.col(column).cast(pl.Float64)
    raise UserError(f"column {column!r} holds {dtype}, expected numbers")

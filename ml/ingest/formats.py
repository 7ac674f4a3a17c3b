"""The tables that people deliver, told apart by their columns alone."""

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
TARIFF_PRICES: Final = ("Low", "Normal", "High")


@dataclass(frozen=True)
class TableFormat:
    """A delivered table: our names of its columns against theirs."""

    kind: TableKind
    title: str
    required_columns: dict[str, str]
    optional_columns: dict[str, str] = field(default_factory=dict)
    allows_extra_columns: bool = False

    def matches_columns(self, columns: frozenset[str]) -> bool:
        """Whether a table with these columns has this shape."""
        required = frozenset(self.required_columns.values())
        known = required | frozenset(self.optional_columns.values())
        return required <= columns and (self.allows_extra_columns or columns <= known)

    @property
    def expected_columns(self) -> str:
        """The columns, for a message."""
        optional = "".join(f" [{name}]" for name in self.optional_columns.values())
        return ", ".join(self.required_columns.values()) + optional


_DATASTORE_ATTRIBUTES: Final = dict(
    zip(HOUSEHOLD_ATTRIBUTES, ("stdorToU", "Acorn", "Acorn_grouped"), strict=True)
)
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
    """A header cell without padding, quotes and byte-order mark."""
    return column.strip(' \t\r\n"\ufeff')


def recognise_format(columns: Iterable[str]) -> TableFormat:
    """The shape of a table with these (clean) columns.

    Raises:
        UserError: no shape fits; the message says what differs from the nearest one.
    """
    found = list(columns)
    for shape in TABLE_FORMATS:
        if shape.matches_columns(frozenset(found)):
            return shape
    raise UserError(_describe_mismatch(found))


def _describe_mismatch(columns: list[str]) -> str:
    nearest = max(
        READING_FORMATS, key=lambda shape: len({*shape.required_columns.values()} & {*columns})
    )
    known = {*nearest.required_columns.values(), *nearest.optional_columns.values()}
    unknown = [name for name in columns if name not in known]
    missing = [name for name in nearest.required_columns.values() if name not in columns]
    if len(missing) > 1:
        return f"no readings: its columns are {_quote_columns(columns)}; expected {READING_FORMATS[0].expected_columns}"
    problems = [f"unknown column {_quote_columns(unknown)}"] if unknown else []
    problems += [f"no column {_quote_columns(missing)}"] if missing else []
    return f"{', '.join(problems)}; expected {nearest.expected_columns}"


def _quote_columns(columns: list[str], max_listed: int = 6) -> str:
    more = f" and {len(columns) - max_listed} more" if len(columns) > max_listed else ""
    return ", ".join(repr(name) for name in columns[:max_listed]) + more


def select_readings(frame: pl.LazyFrame, table_format: TableFormat) -> pl.LazyFrame:
    """Rows under our names: `household_id`, `stamp`, `value` as delivered, and `kwh`.

    Raises:
        UserError: a column holds something else than times or numbers.
    """
    dtypes = frame.collect_schema()
    household, when, kwh = (table_format.required_columns[name] for name in READING_COLUMNS)
    about = {
        name: theirs for name, theirs in table_format.optional_columns.items() if theirs in dtypes
    }
    return frame.select(
        pl.col(household).cast(pl.String).alias("household_id"),
        select_timestamp(when, dtypes[when]),
        pl.col(kwh).alias("value"),
        _parse_number(kwh, dtypes[kwh]).alias("kwh"),
        *(pl.col(theirs).cast(pl.String).alias(name) for name, theirs in about.items()),
    )


def _parse_number(column: str, dtype: pl.DataType) -> pl.Expr:
    if dtype == pl.String:
        return pl.col(column).str.strip_chars().cast(pl.Float64, strict=False)
    if dtype.is_numeric() or dtype == pl.Null:
        return pl.col(column).cast(pl.Float64)
    raise UserError(f"column {column!r} holds {dtype}, expected numbers")

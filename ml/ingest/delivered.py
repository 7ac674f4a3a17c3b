"""The tables that people deliver, told apart by their columns alone."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

import polars as pl

from ml.errors import UserError
from ml.ingest.stamps import select_timestamp

Kind = Literal["readings", "households", "weather", "holidays", "tariffs", "other"]
READING: Final = ("household_id", "ts_utc", "kwh")
ABOUT: Final = ("tariff", "acorn", "acorn_group")
HOUSEHOLD_COLUMNS: Final = frozenset({"LCLid", "household_id"})
PRICES: Final = ("Low", "Normal", "High")


@dataclass(frozen=True)
class Shape:
    """A delivered table: our names of its columns against theirs."""

    kind: Kind
    title: str
    required: dict[str, str]
    optional: dict[str, str] = field(default_factory=dict)
    takes_others: bool = False

    def fits(self, columns: frozenset[str]) -> bool:
        """Whether a table with these columns has this shape."""
        required = frozenset(self.required.values())
        known = required | frozenset(self.optional.values())
        return required <= columns and (self.takes_others or columns <= known)

    @property
    def expected(self) -> str:
        """The columns, for a message."""
        optional = "".join(f" [{name}]" for name in self.optional.values())
        return ", ".join(self.required.values()) + optional


_ABOUT: Final = dict(zip(ABOUT, ("stdorToU", "Acorn", "Acorn_grouped"), strict=True))
READINGS: Final = (
    Shape(
        "readings", "Kaggle", dict(zip(READING, ("LCLid", "tstp", "energy(kWh/hh)"), strict=True))
    ),
    *(
        Shape(
            "readings",
            "Datastore",
            dict(zip(READING, ("LCLid", "DateTime", kwh), strict=True)),
            _ABOUT,
        )
        for kwh in ("KWH/hh (per half hour)", "KWH/hh")
    ),
    Shape("readings", "Meterwatch", {name: name for name in READING}),
)
SHAPES: Final = (
    *READINGS,
    Shape("households", "households", {"household_id": "LCLid", **_ABOUT}, {"": "file"}),
    Shape("households", "households", {name: name for name in ("household_id", *ABOUT)}),
    Shape(
        "weather",
        "weather",
        {"ts_utc": "time", "temperature_c": "temperature", "humidity": "humidity"},
        takes_others=True,
    ),
    Shape("weather", "weather", {name: name for name in ("ts_utc", "temperature_c", "humidity")}),
    Shape("holidays", "bank holidays", {"day": "Bank holidays", "name": "Type"}),
    Shape("holidays", "bank holidays", {"day": "day", "name": "name"}),
    Shape("tariffs", "tariffs", {"ts_utc": "TariffDateTime", "price": "Tariff"}),
    Shape("tariffs", "tariffs", {"ts_utc": "ts_utc", "price": "price"}),
    Shape(
        "other",
        "Acorn profiles",
        {name: name for name in ("MAIN CATEGORIES", "CATEGORIES", "REFERENCE")},
        takes_others=True,
    ),
    Shape(
        "other",
        "planted anomalies",
        {name: name for name in ("household_id", "night", "kind")},
        takes_others=True,
    ),
)


def clean(column: str) -> str:
    """A header cell without padding, quotes and byte-order mark."""
    return column.strip(' \t\r\n"\ufeff')


def recognise(columns: Iterable[str]) -> Shape:
    """The shape of a table with these (clean) columns.

    Raises:
        UserError: no shape fits; the message says what differs from the nearest one.
    """
    found = list(columns)
    for shape in SHAPES:
        if shape.fits(frozenset(found)):
            return shape
    raise UserError(_difference(found))


def _difference(columns: list[str]) -> str:
    nearest = max(READINGS, key=lambda shape: len({*shape.required.values()} & {*columns}))
    known = {*nearest.required.values(), *nearest.optional.values()}
    unknown = [name for name in columns if name not in known]
    missing = [name for name in nearest.required.values() if name not in columns]
    if len(missing) > 1:
        return f"no readings: its columns are {_listed(columns)}; expected {READINGS[0].expected}"
    problems = [f"unknown column {_listed(unknown)}"] if unknown else []
    problems += [f"no column {_listed(missing)}"] if missing else []
    return f"{', '.join(problems)}; expected {nearest.expected}"


def _listed(columns: list[str], most: int = 6) -> str:
    more = f" and {len(columns) - most} more" if len(columns) > most else ""
    return ", ".join(repr(name) for name in columns[:most]) + more


def readings(frame: pl.LazyFrame, shape: Shape) -> pl.LazyFrame:
    """Rows under our names: `household_id`, `stamp`, `value` as delivered, and `kwh`.

    Raises:
        UserError: a column holds something else than times or numbers.
    """
    dtypes = frame.collect_schema()
    household, when, kwh = (shape.required[name] for name in READING)
    about = {name: theirs for name, theirs in shape.optional.items() if theirs in dtypes}
    return frame.select(
        pl.col(household).cast(pl.String).alias("household_id"),
        select_timestamp(when, dtypes[when]),
        pl.col(kwh).alias("value"),
        _number(kwh, dtypes[kwh]).alias("kwh"),
        *(pl.col(theirs).cast(pl.String).alias(name) for name, theirs in about.items()),
    )


def _number(column: str, dtype: pl.DataType) -> pl.Expr:
    if dtype == pl.String:
        return pl.col(column).str.strip_chars().cast(pl.Float64, strict=False)
    if dtype.is_numeric() or dtype == pl.Null:
        return pl.col(column).cast(pl.Float64)
    raise UserError(f"column {column!r} holds {dtype}, expected numbers")

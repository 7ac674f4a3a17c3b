"""Several readings for one half-hour: which one stays, and what becomes of the others.

Deliveries have an order; the later one wins. Within one delivered file, where rows have no order,
the largest reading wins. Readings are compared as Float32: 6.5279999 and 6.528 are the same.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ml.ingest.rules import HALF_HOUR_US, RULE, Indices, Readings
from ml.schemas import HALF_HOURS

LAKE: Final = -1  # the rank of what earlier calls delivered
ASIDE: Final = pl.Schema(
    [
        ("household_id", pl.String()),
        ("ts_utc", pl.Datetime("us")),
        ("value", pl.String()),
        ("rule", RULE),
        ("rank", pl.Int32()),
        ("by", pl.Int32()),
    ]
)
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Resolved:
    """Household-days with one reading a half-hour, and the readings that gave way.

    `aside` says of each the delivery it came from (`rank`) and the one whose reading stays (`by`);
    `repeated` counts by rank the readings that stay and that the lake held before.
    """

    days: pl.DataFrame
    aside: pl.DataFrame
    repeated: dict[int, int]


@dataclass(frozen=True)
class _Cells:
    """The half-hours of n household-days: the reading that stays and the delivery it came from."""

    ids: pl.DataFrame
    kwh: Readings
    rank: NDArray[np.int32]


def resolve(parts: pl.DataFrame, taken: list[pl.DataFrame]) -> Resolved:
    """Resolve household-days of several deliveries.

    Args:
        parts: `night`, `household_id`, `kwh` [48, NaN where missing], `rank` of the delivery and
            `part` of its file, ordered by both; a household-day occurs once in a part.
        taken: single readings `household_id`, `ts_utc`, `value`, `kwh`, `rank` beside those.
    """
    ids = parts.select("night", "household_id").unique().sort("night", "household_id")
    ids = ids.with_row_index("cell_row")
    rows = parts.join(ids, on=["night", "household_id"], how="left", maintain_order="left")
    cells = _strongest(rows, ids)
    repeated = Counter[int]()
    given_way = [*_given_way(rows, cells, repeated), *(_compared(each, cells) for each in taken)]
    days = ids.select("night", "household_id", _nulls(cells.kwh))
    return Resolved(days, pl.concat(given_way).select(ASIDE.names()), dict(repeated))


def present(days: pl.DataFrame, spans: pl.DataFrame) -> int:
    """How many readings of `days` (null where missing) lie within the households' spans."""
    inside = days.join(spans, on="household_id", maintain_order="left")
    if inside.is_empty():
        return 0
    start = inside.get_column("night").to_physical().to_numpy().astype(np.int64) * HALF_HOURS
    stamp = start[:, None] + np.arange(HALF_HOURS)
    first, last = (
        inside.get_column(name).to_physical().to_numpy()[:, None] // HALF_HOUR_US
        for name in ("first_ts_utc", "last_ts_utc")
    )
    return int(
        np.count_nonzero(~np.isnan(filled(inside).to_numpy()) & (first <= stamp) & (stamp <= last))
    )


def filled(days: pl.DataFrame) -> pl.Series:
    """The readings of household-days [n, 48], NaN instead of null."""
    flat = days.get_column("kwh").reshape((-1,)).fill_null(float("nan"))
    return flat.reshape((days.height, HALF_HOURS))


def _parts(rows: pl.DataFrame) -> Iterator[tuple[int, Indices, Readings]]:
    """Rank, place among the household-days, and readings of each part."""
    for part in rows.partition_by("rank", "part", maintain_order=True):
        place = part.get_column("cell_row").to_numpy().astype(np.int64)
        yield int(part.item(0, "rank")), place, part.get_column("kwh").to_numpy()


def _strongest(rows: pl.DataFrame, ids: pl.DataFrame) -> _Cells:
    kwh = np.full((ids.height, HALF_HOURS), np.nan, dtype=np.float32)
    ranks = np.full(kwh.shape, LAKE, dtype=np.int32)
    for rank, place, given in _parts(rows):
        present_kwh = kwh[place]
        holds = (ranks[place] == rank) & (present_kwh >= given)
        wins = ~np.isnan(given) & ~holds
        kwh[place] = np.where(wins, given, present_kwh)
        ranks[place] = np.where(wins, np.int32(rank), ranks[place])
    return _Cells(ids, kwh, ranks)


def _given_way(rows: pl.DataFrame, cells: _Cells, repeated: Counter[int]) -> Iterator[pl.DataFrame]:
    """The readings of each part that do not stay, with the rule; count those the lake held."""
    yield pl.DataFrame(schema=ASIDE)
    if _count(rows.get_column("kwh").to_numpy()) == _count(cells.kwh):
        return
    stays, held = np.zeros((2, *cells.kwh.shape), dtype=bool)
    for rank, place, given in _parts(rows):
        equal = given == cells.kwh[place]
        if rank == LAKE:
            held[place] = equal
        else:
            yield _listed(cells, place, given, equal & stays[place], "duplicate", rank)
            repeated[rank] += int(np.count_nonzero(equal & ~stays[place] & held[place]))
            stays[place] |= equal
        yield _listed(cells, place, given, ~np.isnan(given) & ~equal, "superseded", rank)


def _listed(
    cells: _Cells, place: Indices, given: Readings, where: Bools, rule: str, rank: int
) -> pl.DataFrame:
    row, slot = np.nonzero(where)
    cell = place[row]
    start = cells.ids.get_column("night").gather(cell).cast(pl.Datetime("us"))
    listed = pl.DataFrame(
        {
            "household_id": cells.ids.get_column("household_id").gather(cell),
            "ts_utc": start.to_physical() + pl.Series(slot) * HALF_HOUR_US,
            "value": pl.Series(given[row, slot]).cast(pl.String),
            "rule": pl.repeat(rule, len(row), dtype=pl.String, eager=True),
            "rank": pl.repeat(rank, len(row), dtype=pl.Int32, eager=True),
            "by": cells.rank[cell, slot],
        }
    )
    return listed.cast(ASIDE)


def _compared(taken: pl.DataFrame, cells: _Cells) -> pl.DataFrame:
    """Single readings that met a filled half-hour: the same reading again, or another."""
    of_day = taken.with_columns(night=pl.col("ts_utc").dt.date())
    rows = of_day.join(cells.ids, on=["night", "household_id"], how="left", maintain_order="left")
    place = rows.get_column("cell_row").to_numpy().astype(np.int64)
    slot = rows.get_column("ts_utc").to_physical().to_numpy() // HALF_HOUR_US % HALF_HOURS
    is_equal = pl.Series(cells.kwh[place, slot] == rows.get_column("kwh").to_numpy())
    rule = pl.when(is_equal).then(pl.lit("duplicate")).otherwise(pl.lit("superseded"))
    compared = rows.with_columns(rule=rule, by=pl.Series(cells.rank[place, slot], dtype=pl.Int32))
    return compared.select(ASIDE.names()).cast(ASIDE)


def _nulls(kwh: Readings) -> pl.Series:
    return pl.Series("kwh", kwh.ravel()).fill_nan(None).reshape((len(kwh), HALF_HOURS))


def _count(kwh: Readings) -> int:
    return int(np.count_nonzero(~np.isnan(kwh)))

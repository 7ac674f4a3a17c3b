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

from ml.ingest.rules import HALF_HOUR_US, RULE_DTYPE, Bools, Indices, Readings
from ml.schemas import HALF_HOURS, readings_as_array

LAKE: Final = -1  # the rank of what earlier calls delivered
ASIDE: Final = pl.Schema(
    [
        ("household_id", pl.String()),
        ("ts_utc", pl.Datetime("us")),
        ("value", pl.String()),
        ("rule", RULE_DTYPE),
        ("rank", pl.Int32()),
        ("by", pl.Int32()),
    ]
)


@dataclass(frozen=True)
class Given:
    """Household-days that one delivery gives: `night`, `household_id`, `kwh` [48, NaN if missing].

    A household-day occurs once. `taken` are single readings beside them: `household_id`, `ts_utc`,
    `value`, `kwh`.
    """

    rank: int
    days: pl.DataFrame
    taken: pl.DataFrame | None = None


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


@dataclass(frozen=True)
class _Part:
    """What was given, by its place among all household-days; some of them others give too."""

    rank: int
    place: Indices
    kwh: Readings
    is_shared: Bools


def resolve(given: list[Given]) -> Resolved:
    """Resolve household-days of several deliveries, in their order."""
    ids, places = _household_days([each.days for each in given])
    count = sum((np.bincount(place, minlength=ids.height) for place in places), np.zeros(1, int))
    parts = [
        _Part(each.rank, place, each.days.get_column("kwh").to_numpy(), count[place] > 1)
        for each, place in zip(given, places, strict=True)
    ]
    cells = _strongest(parts, ids)
    repeated = Counter[int]()
    aside = [_listed(cells, list(_given_way(parts, cells, repeated)))]
    if taken := [
        each.taken.with_columns(rank=each.rank) for each in given if each.taken is not None
    ]:
        aside.append(_compared(pl.concat(taken), cells))
    n_readings = np.isfinite(cells.kwh).sum(axis=1, dtype=np.int16)
    days = ids.with_columns(pl.Series("n_readings", n_readings), _nulls(cells.kwh))
    return Resolved(days, pl.concat(aside), dict(repeated))


def present(days: pl.DataFrame, spans: pl.DataFrame) -> int:
    """How many readings of `days` (null where missing) lie within the households' spans."""
    inside = days.join(spans, on="household_id", maintain_order="left")
    if inside.is_empty():
        return 0
    start = inside.get_column("night").to_physical().to_numpy() * HALF_HOURS
    first, last = (
        (inside.get_column(name).to_physical().to_numpy() // HALF_HOUR_US - start)[:, None]
        for name in ("first_ts_utc", "last_ts_utc")
    )
    slot = np.arange(HALF_HOURS)
    is_read = ~np.isnan(readings_as_array(inside).to_numpy())
    return int(np.count_nonzero(is_read & (first <= slot) & (slot <= last)))


def _household_days(days: list[pl.DataFrame]) -> tuple[pl.DataFrame, list[Indices]]:
    """All `night`, `household_id`, sorted, and the place of each frame's rows among them."""
    ids = pl.concat([each.select("night", "household_id") for each in days])
    names = ids.get_column("household_id").unique().sort()
    code = ids.get_column("household_id").cast(pl.Enum(names)).to_physical().to_numpy()
    night = ids.get_column("night").to_physical().to_numpy()
    found, place = np.unique(night.astype(np.int64) * len(names) + code, return_inverse=True)
    every = pl.DataFrame(
        {
            "night": pl.Series(found // len(names)).cast(pl.Int32).cast(pl.Date),
            "household_id": names.gather(found % len(names)),
        }
    )
    return every, np.split(place, np.cumsum([each.height for each in days])[:-1])


def _strongest(parts: list[_Part], ids: pl.DataFrame) -> _Cells:
    kwh = np.full((ids.height, HALF_HOURS), np.nan, dtype=np.float32)
    ranks = np.full(kwh.shape, LAKE, dtype=np.int32)
    for part in parts:
        alone = part.place[~part.is_shared]
        kwh[alone], ranks[alone] = part.kwh[~part.is_shared], part.rank
        place, given = part.place[part.is_shared], part.kwh[part.is_shared]
        holds = (ranks[place] == part.rank) & (kwh[place] >= given)
        wins = ~np.isnan(given) & ~holds
        kwh[place] = np.where(wins, given, kwh[place])
        ranks[place] = np.where(wins, np.int32(part.rank), ranks[place])
    return _Cells(ids, kwh, ranks)


def _given_way(
    parts: list[_Part], cells: _Cells, repeated: Counter[int]
) -> Iterator[tuple[Indices, Indices, Readings, str, int]]:
    """Cells, half-hours and readings that do not stay, why, and who gave them.

    Those that stay and that the lake held before are counted.
    """
    stays, held = np.zeros((2, *cells.kwh.shape), dtype=bool)
    for part in parts:
        place, given = part.place[part.is_shared], part.kwh[part.is_shared]
        equal = given == cells.kwh[place]
        if part.rank == LAKE:
            held[place] = equal
        else:
            row, slot = np.nonzero(equal & stays[place])
            yield place[row], slot, given[row, slot], "duplicate", part.rank
            repeated[part.rank] += int(np.count_nonzero(equal & ~stays[place] & held[place]))
            stays[place] |= equal
        row, slot = np.nonzero(~np.isnan(given) & ~equal)
        yield place[row], slot, given[row, slot], "superseded", part.rank


def _listed(
    cells: _Cells, given_way: list[tuple[Indices, Indices, Readings, str, int]]
) -> pl.DataFrame:
    cell, slot, given = (np.concatenate([each[i] for each in given_way]) for i in range(3))
    counts = [len(each[0]) for each in given_way]
    start = cells.ids.get_column("night").gather(cell).cast(pl.Datetime("us"))
    listed = pl.DataFrame(
        {
            "household_id": cells.ids.get_column("household_id").gather(cell),
            "ts_utc": start.to_physical() + pl.Series(slot) * HALF_HOUR_US,
            "value": pl.Series(given).cast(pl.String),
            "rule": np.repeat([each[3] for each in given_way], counts),
            "rank": np.repeat([each[4] for each in given_way], counts),
            "by": cells.rank[cell, slot],
        }
    )
    return listed.cast(ASIDE)


def _compared(taken: pl.DataFrame, cells: _Cells) -> pl.DataFrame:
    """Single readings that met a filled half-hour: the same reading again, or another."""
    ids = cells.ids.with_row_index("cell")
    of_day = taken.with_columns(night=pl.col("ts_utc").dt.date())
    rows = of_day.join(ids, on=["night", "household_id"], how="left", maintain_order="left")
    cell = rows.get_column("cell").to_numpy().astype(np.int64)
    slot = rows.get_column("ts_utc").to_physical().to_numpy() // HALF_HOUR_US % HALF_HOURS
    is_equal = pl.Series(cells.kwh[cell, slot] == rows.get_column("kwh").to_numpy())
    rule = pl.when(is_equal).then(pl.lit("duplicate")).otherwise(pl.lit("superseded"))
    compared = rows.with_columns(rule=rule, by=pl.Series(cells.rank[cell, slot], dtype=pl.Int32))
    return compared.select(ASIDE.names()).cast(ASIDE)


def _nulls(kwh: Readings) -> pl.Series:
    return pl.Series("kwh", kwh.ravel()).fill_nan(None).reshape((len(kwh), HALF_HOURS))

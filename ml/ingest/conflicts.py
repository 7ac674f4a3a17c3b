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

from ml.ingest.validation import HALF_HOUR_US, RULE_DTYPE, Bools, Indices, Readings
from ml.schemas import HALF_HOURS, readings_as_array

LAKE_RANK: Final = -1  # the rank of what earlier calls delivered
LOSING_READINGS_SCHEMA: Final = pl.Schema(
    [
        ("household_id", pl.String()),
        ("ts_utc", pl.Datetime("us")),
        ("value", pl.String()),
        ("rule", RULE_DTYPE),
        ("delivery_rank", pl.Int32()),
        ("winning_rank", pl.Int32()),
    ]
)


@dataclass(frozen=True)
class DeliveredHouseholdNights:
    """Household-days that one delivery gives: `night`, `household_id`, `kwh` [48, NaN if missing].

    A household-day occurs once. `taken` are single readings beside them: `household_id`, `ts_utc`,
    `value`, `kwh`.
    """

    delivery_rank: int
    household_nights: pl.DataFrame
    collisions: pl.DataFrame | None = None


@dataclass(frozen=True)
class ResolvedHouseholdNights:
    """Household-days with one reading a half-hour, and the readings that gave way.

    `aside` says of each the delivery it came from (`rank`) and the one whose reading stays (`by`);
    `repeated` counts by rank the readings that stay and that the lake held before.
    """

    household_nights: pl.DataFrame
    losing_readings: pl.DataFrame
    n_repeated_by_rank: dict[int, int]


@dataclass(frozen=True)
class _WinningReadings:
    """The half-hours of n household-days: the reading that stays and the delivery it came from."""

    household_nights: pl.DataFrame
    kwh: Readings
    delivery_rank: NDArray[np.int32]


@dataclass(frozen=True)
class _PlacedReadings:
    """What was given, by its place among all household-days; some of them others give too."""

    delivery_rank: int
    positions: Indices
    kwh: Readings
    is_shared: Bools


def resolve_conflicts(deliveries: list[DeliveredHouseholdNights]) -> ResolvedHouseholdNights:
    """Resolve household-days of several deliveries, in their order."""
    ids, places = _index_household_nights([each.household_nights for each in deliveries])
    count = sum((np.bincount(place, minlength=ids.height) for place in places), np.zeros(1, int))
    parts = [
        _PlacedReadings(
            each.delivery_rank,
            place,
            each.household_nights.get_column("kwh").to_numpy(),
            count[place] > 1,
        )
        for each, place in zip(deliveries, places, strict=True)
    ]
    cells = _select_winning_readings(parts, ids)
    repeated = Counter[int]()
    aside = [_tabulate_losing_readings(cells, list(_find_losing_readings(parts, cells, repeated)))]
    if taken := [
        each.collisions.with_columns(delivery_rank=each.delivery_rank)
        for each in deliveries
        if each.collisions is not None
    ]:
        aside.append(_classify_collisions(pl.concat(taken), cells))
    n_readings = np.isfinite(cells.kwh).sum(axis=1, dtype=np.int16)
    days = ids.with_columns(pl.Series("n_readings", n_readings), _nan_to_null(cells.kwh))
    return ResolvedHouseholdNights(days, pl.concat(aside), dict(repeated))


def count_readings_in_spans(household_nights: pl.DataFrame, spans: pl.DataFrame) -> int:
    """How many readings of `days` (null where missing) lie within the households' spans."""
    inside = household_nights.join(spans, on="household_id", maintain_order="left")
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


def _index_household_nights(frames: list[pl.DataFrame]) -> tuple[pl.DataFrame, list[Indices]]:
    """All `night`, `household_id`, sorted, and the place of each frame's rows among them."""
    ids = pl.concat([each.select("night", "household_id") for each in frames])
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
    return every, np.split(place, np.cumsum([each.height for each in frames])[:-1])


def _select_winning_readings(
    placed_readings: list[_PlacedReadings], household_nights: pl.DataFrame
) -> _WinningReadings:
    kwh = np.full((household_nights.height, HALF_HOURS), np.nan, dtype=np.float32)
    ranks = np.full(kwh.shape, LAKE_RANK, dtype=np.int32)
    for part in placed_readings:
        alone = part.positions[~part.is_shared]
        kwh[alone], ranks[alone] = part.kwh[~part.is_shared], part.delivery_rank
        place, given = part.positions[part.is_shared], part.kwh[part.is_shared]
        holds = (ranks[place] == part.delivery_rank) & (kwh[place] >= given)
        wins = ~np.isnan(given) & ~holds
        kwh[place] = np.where(wins, given, kwh[place])
        ranks[place] = np.where(wins, np.int32(part.delivery_rank), ranks[place])
    return _WinningReadings(household_nights, kwh, ranks)


def _find_losing_readings(
    placed_readings: list[_PlacedReadings],
    winning: _WinningReadings,
    n_repeated_by_rank: Counter[int],
) -> Iterator[tuple[Indices, Indices, Readings, str, int]]:
    """Cells, half-hours and readings that do not stay, why, and who gave them.

    Those that stay and that the lake held before are counted.
    """
    stays, held = np.zeros((2, *winning.kwh.shape), dtype=bool)
    for part in placed_readings:
        place, given = part.positions[part.is_shared], part.kwh[part.is_shared]
        equal = given == winning.kwh[place]
        if part.delivery_rank == LAKE_RANK:
            held[place] = equal
        else:
            row, slot = np.nonzero(equal & stays[place])
            yield place[row], slot, given[row, slot], "duplicate", part.delivery_rank
            n_repeated_by_rank[part.delivery_rank] += int(
                np.count_nonzero(equal & ~stays[place] & held[place])
            )
            stays[place] |= equal
        row, slot = np.nonzero(~np.isnan(given) & ~equal)
        yield place[row], slot, given[row, slot], "superseded", part.delivery_rank


def _tabulate_losing_readings(
    winning: _WinningReadings, losing_readings: list[tuple[Indices, Indices, Readings, str, int]]
) -> pl.DataFrame:
    cell, slot, given = (np.concatenate([each[i] for each in losing_readings]) for i in range(3))
    counts = [len(each[0]) for each in losing_readings]
    start = winning.household_nights.get_column("night").gather(cell).cast(pl.Datetime("us"))
    listed = pl.DataFrame(
        {
            "household_id": winning.household_nights.get_column("household_id").gather(cell),
            "ts_utc": start.to_physical() + pl.Series(slot) * HALF_HOUR_US,
            "value": pl.Series(given).cast(pl.String),
            "rule": np.repeat([each[3] for each in losing_readings], counts),
            "delivery_rank": np.repeat([each[4] for each in losing_readings], counts),
            "winning_rank": winning.delivery_rank[cell, slot],
        }
    )
    return listed.cast(LOSING_READINGS_SCHEMA)


def _classify_collisions(collisions: pl.DataFrame, winning: _WinningReadings) -> pl.DataFrame:
    """Single readings that met a filled half-hour: the same reading again, or another."""
    ids = winning.household_nights.with_row_index("cell")
    of_day = collisions.with_columns(night=pl.col("ts_utc").dt.date())
    rows = of_day.join(ids, on=["night", "household_id"], how="left", maintain_order="left")
    cell = rows.get_column("cell").to_numpy().astype(np.int64)
    slot = rows.get_column("ts_utc").to_physical().to_numpy() // HALF_HOUR_US % HALF_HOURS
    is_equal = pl.Series(winning.kwh[cell, slot] == rows.get_column("kwh").to_numpy())
    rule = pl.when(is_equal).then(pl.lit("duplicate")).otherwise(pl.lit("superseded"))
    compared = rows.with_columns(
        rule=rule, winning_rank=pl.Series(winning.delivery_rank[cell, slot], dtype=pl.Int32)
    )
    return compared.select(LOSING_READINGS_SCHEMA.names()).cast(LOSING_READINGS_SCHEMA)


def _nan_to_null(kwh: Readings) -> pl.Series:
    return pl.Series("kwh", kwh.ravel()).fill_nan(None).reshape((len(kwh), HALF_HOURS))

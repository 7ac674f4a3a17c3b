"""Resolve several readings of one half-hour: which one is kept, and what becomes of the others.

Deliveries have an order and the later one wins. Rows of one delivered file have none, so among them
the largest reading wins. Readings are compared as Float32: 6.5279999 and 6.528 are the same.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ml.ingest.validation import HALF_HOUR_US, RULE_DTYPE, Bools, Indices, Readings
from ml.schemas import HALF_HOURS, array_as_readings, readings_as_array

LAKE_RANK: Final = -1
"""The delivery rank of what earlier calls brought into the lake: before every delivery."""
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
"""Readings that were not kept, the delivery each came from and the one whose reading was kept."""


@dataclass(frozen=True)
class DeliveredHouseholdNights:
    """Household-nights of one delivery, or a part of it; each household-night occurs once."""

    delivery_rank: int
    household_nights: pl.DataFrame
    """`night, household_id, kwh` (48 Float32, NaN where missing)."""
    collisions: pl.DataFrame | None = None
    """Further readings of filled half-hours: `household_id, ts_utc, value, kwh`."""


@dataclass(frozen=True)
class ResolvedHouseholdNights:
    """Household-nights with one reading a half-hour, and the readings that were not kept."""

    household_nights: pl.DataFrame
    """`night, household_id, n_readings, kwh` (48 Float32, null where missing), sorted."""
    losing_readings: pl.DataFrame
    """Columns of `LOSING_READINGS_SCHEMA`."""
    n_repeated_by_rank: dict[int, int]
    """By delivery rank, its readings that were kept and that the lake held already."""


@dataclass(frozen=True)
class _WinningReadings:
    """The kept readings `[n, 48]` of n household-nights, and the delivery each came from."""

    household_nights: pl.DataFrame
    kwh: Readings
    delivery_rank: NDArray[np.int32]


@dataclass(frozen=True)
class _PlacedReadings:
    """The readings `[k, 48]` of one delivery, with the places of its k household-nights."""

    delivery_rank: int
    positions: Indices
    kwh: Readings
    is_shared: Bools
    """Of each household-night, whether another delivery has it too: only there is a conflict."""


@dataclass(frozen=True)
class _LosingReadings:
    """Readings of one delivery that were not kept, by household-night and half-hour."""

    delivery_rank: int
    rule: Literal["duplicate", "superseded"]
    positions: Indices
    half_hours: Indices
    kwh: Readings


def resolve_conflicts(deliveries: list[DeliveredHouseholdNights]) -> ResolvedHouseholdNights:
    """Merge the household-nights of deliveries, given in their order, and report what lost."""
    ids, positions = _index_household_nights([each.household_nights for each in deliveries])
    n_holders = np.zeros(ids.height, dtype=int)
    for each in positions:
        n_holders += np.bincount(each, minlength=ids.height)
    placed_readings = [
        _PlacedReadings(
            delivery.delivery_rank,
            position,
            delivery.household_nights.get_column("kwh").to_numpy(),
            n_holders[position] > 1,
        )
        for delivery, position in zip(deliveries, positions, strict=True)
    ]
    winning = _select_winning_readings(placed_readings, ids)
    losing, n_repeated_by_rank = _find_losing_readings(placed_readings, winning)
    losing_tables = [_tabulate_losing_readings(winning, losing)]
    collisions = [
        delivery.collisions.with_columns(delivery_rank=delivery.delivery_rank)
        for delivery in deliveries
        if delivery.collisions is not None
    ]
    if collisions:
        losing_tables.append(_classify_collisions(pl.concat(collisions), winning))
    n_readings = np.isfinite(winning.kwh).sum(axis=1, dtype=np.int16)
    household_nights = ids.with_columns(
        pl.Series("n_readings", n_readings), array_as_readings(winning.kwh).alias("kwh")
    )
    return ResolvedHouseholdNights(
        household_nights, pl.concat(losing_tables), dict(n_repeated_by_rank)
    )


def count_readings_in_spans(household_nights: pl.DataFrame, spans: pl.DataFrame) -> int:
    """Count the readings that lie within their household's span, both ends included.

    `household_nights` has null where a reading is missing; a household without a row of `spans`
    (`household_id, first_ts_utc, last_ts_utc`) counts nothing.
    """
    rows = household_nights.join(spans, on="household_id", maintain_order="left")
    if rows.is_empty():
        return 0
    first_half_hour = rows.get_column("night").to_physical().to_numpy() * HALF_HOURS
    # Half-hours of the span relative to the night's first one; they may lie outside the night.
    span_start, span_end = (
        (rows.get_column(name).to_physical().to_numpy() // HALF_HOUR_US - first_half_hour)[:, None]
        for name in ("first_ts_utc", "last_ts_utc")
    )
    half_hour = np.arange(HALF_HOURS)
    is_read = ~np.isnan(readings_as_array(rows).to_numpy())
    return int(np.count_nonzero(is_read & (span_start <= half_hour) & (half_hour <= span_end)))


def _index_household_nights(frames: list[pl.DataFrame]) -> tuple[pl.DataFrame, list[Indices]]:
    """Return all `night, household_id`, sorted, and the place of each frame's rows among them."""
    ids = pl.concat([each.select("night", "household_id") for each in frames])
    households = ids.get_column("household_id").unique().sort()
    household_code = ids.get_column("household_id").cast(pl.Enum(households)).to_physical()
    epoch_day = ids.get_column("night").to_physical().to_numpy().astype(np.int64)
    # One integer a household-night that sorts as (night, household): faster than a sort of text.
    codes, positions = np.unique(
        epoch_day * len(households) + household_code.to_numpy(), return_inverse=True
    )
    household_nights = pl.DataFrame(
        {
            "night": pl.Series(codes // len(households)).cast(pl.Int32).cast(pl.Date),
            "household_id": households.gather(codes % len(households)),
        }
    )
    return household_nights, np.split(positions, np.cumsum([each.height for each in frames])[:-1])


def _select_winning_readings(
    placed_readings: list[_PlacedReadings], household_nights: pl.DataFrame
) -> _WinningReadings:
    """Lay deliveries over one another in their order; parts of one delivery by the larger."""
    kwh = np.full((household_nights.height, HALF_HOURS), np.nan, dtype=np.float32)
    ranks = np.full(kwh.shape, LAKE_RANK, dtype=np.int32)
    for each in placed_readings:
        # Nearly all household-nights are of one delivery alone: copied without comparison.
        unshared = each.positions[~each.is_shared]
        kwh[unshared] = each.kwh[~each.is_shared]
        ranks[unshared] = each.delivery_rank
        shared = each.positions[each.is_shared]
        delivered = each.kwh[each.is_shared]
        # A part of the same delivery came before: only a larger reading wins. A missing earlier
        # reading (NaN) compares false and is replaced.
        is_beaten = (ranks[shared] == each.delivery_rank) & (kwh[shared] >= delivered)
        wins = ~np.isnan(delivered) & ~is_beaten
        kwh[shared] = np.where(wins, delivered, kwh[shared])
        ranks[shared] = np.where(wins, np.int32(each.delivery_rank), ranks[shared])
    return _WinningReadings(household_nights, kwh, ranks)


def _find_losing_readings(
    placed_readings: list[_PlacedReadings], winning: _WinningReadings
) -> tuple[list[_LosingReadings], Counter[int]]:
    """Return what was not kept, and by delivery how many kept readings the lake held already.

    A reading that differs from the kept one is superseded. Of those that equal it the first
    delivered one is kept and the later ones are duplicates; the lake's is neither delivered by this
    call nor a duplicate.
    """
    is_delivered = np.zeros(winning.kwh.shape, dtype=bool)
    is_in_lake = np.zeros(winning.kwh.shape, dtype=bool)
    losing = []
    n_repeated_by_rank = Counter[int]()
    for each in placed_readings:
        rank = each.delivery_rank
        shared = each.positions[each.is_shared]
        kwh = each.kwh[each.is_shared]
        is_equal = kwh == winning.kwh[shared]
        if rank == LAKE_RANK:
            is_in_lake[shared] = is_equal
        else:
            is_first = is_equal & ~is_delivered[shared]
            row, half_hour = np.nonzero(is_equal & is_delivered[shared])
            losing.append(
                _LosingReadings(rank, "duplicate", shared[row], half_hour, kwh[row, half_hour])
            )
            n_repeated_by_rank[rank] += int(np.count_nonzero(is_first & is_in_lake[shared]))
            is_delivered[shared] |= is_equal
        row, half_hour = np.nonzero(~np.isnan(kwh) & ~is_equal)
        losing.append(
            _LosingReadings(rank, "superseded", shared[row], half_hour, kwh[row, half_hour])
        )
    return losing, n_repeated_by_rank


def _tabulate_losing_readings(
    winning: _WinningReadings, losing_readings: list[_LosingReadings]
) -> pl.DataFrame:
    """Return losing readings as rows of `LOSING_READINGS_SCHEMA`."""
    positions = np.concatenate([each.positions for each in losing_readings])
    half_hours = np.concatenate([each.half_hours for each in losing_readings])
    kwh = np.concatenate([each.kwh for each in losing_readings])
    counts = [len(each.positions) for each in losing_readings]
    ids = winning.household_nights[positions]
    midnight = ids.get_column("night").cast(pl.Datetime("us"))
    table = pl.DataFrame(
        {
            "household_id": ids.get_column("household_id"),
            "ts_utc": midnight.to_physical() + pl.Series(half_hours) * HALF_HOUR_US,
            "value": pl.Series(kwh).cast(pl.String),
            "rule": np.repeat([each.rule for each in losing_readings], counts),
            "delivery_rank": np.repeat([each.delivery_rank for each in losing_readings], counts),
            "winning_rank": winning.delivery_rank[positions, half_hours],
        }
    )
    return table.cast(LOSING_READINGS_SCHEMA)


def _classify_collisions(collisions: pl.DataFrame, winning: _WinningReadings) -> pl.DataFrame:
    """Return collisions as rows of `LOSING_READINGS_SCHEMA`: equal to the kept reading, or not."""
    ids = winning.household_nights.with_row_index("position")
    stamped = collisions.with_columns(night=pl.col("ts_utc").dt.date())
    rows = stamped.join(ids, on=["night", "household_id"], how="left", maintain_order="left")
    position = rows.get_column("position").to_numpy().astype(np.int64)
    half_hour = rows.get_column("ts_utc").to_physical().to_numpy() // HALF_HOUR_US % HALF_HOURS
    is_equal = pl.Series(winning.kwh[position, half_hour] == rows.get_column("kwh").to_numpy())
    rule = pl.when(is_equal).then(pl.lit("duplicate")).otherwise(pl.lit("superseded"))
    winning_rank = pl.Series(winning.delivery_rank[position, half_hour], dtype=pl.Int32)
    classified = rows.with_columns(rule=rule, winning_rank=winning_rank)
    return classified.select(LOSING_READINGS_SCHEMA.names()).cast(LOSING_READINGS_SCHEMA)

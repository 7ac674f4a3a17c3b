"""A simulated fleet of London-like households, in blocks that can be drawn in any order.

config -> calendar, weather, prices                environment
       -> traits of households                     behaviour
       -> readings [n, D, 48]                      readings
       -> anomalies and their truth                anomalies
       -> delivered rows with defects              delivery_defects
"""

import math
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import numpy as np
import polars as pl

from ml.schemas import InjectedAnomalies
from ml.simulation import delivery_defects, readings
from ml.simulation.anomalies import ANOMALOUS_HOUSEHOLD_SHARE, SimulatedEpisode, inject_episodes
from ml.simulation.behaviour import draw_behaviour
from ml.simulation.environment import (
    FleetConfig,
    FleetEnvironment,
    Floats,
    build_environment,
    list_half_hours_utc,
)

HOUSEHOLDS_PER_BLOCK: Final = 256
"""Households drawn and delivered together: 100 days of them are 5 MB of readings."""
TOU_SHARE: Final = 0.2
"""Share of the households on the time-of-use tariff, as in the trial (about 1,100 of 5,567)."""
ACORN_COUNTS: Final = {
    "ACORN-A": 157,
    "ACORN-B": 25,
    "ACORN-C": 151,
    "ACORN-D": 292,
    "ACORN-E": 1567,
    "ACORN-F": 684,
    "ACORN-G": 205,
    "ACORN-H": 455,
    "ACORN-I": 51,
    "ACORN-J": 112,
    "ACORN-K": 165,
    "ACORN-L": 342,
    "ACORN-M": 113,
    "ACORN-N": 152,
    "ACORN-O": 103,
    "ACORN-P": 110,
    "ACORN-Q": 831,
    "ACORN-U": 49,
    "ACORN-": 2,
}
"""Households of each Acorn category in the trial."""
ACORN_GROUPS: Final = {"Affluent": "ABCDE", "Comfortable": "FGHIJ", "Adversity": "KLMNOPQ"}
"""Acorn groups by the letters of their categories; others keep the category as their group."""
LOG_LEVEL_BY_GROUP: Final = {"Affluent": 0.18, "Adversity": -0.15}
"""Shift of the standardised log size by Acorn group, fitted by hand to 225 London households."""


@dataclass(frozen=True)
class SimulatedBlock:
    """What a block of households delivers, with the truth about it."""

    delivered: pl.DataFrame
    """`household_id, ts_utc, kwh`; null is delivered as `Null`."""
    correction: pl.DataFrame
    """The same columns, delivered later, and right."""
    truth: pl.DataFrame
    """The injected household-nights, `InjectedAnomalies`."""
    defect_counts: dict[str, int]
    """Rows that the ingest has to set aside, by the rule that they break."""


def count_blocks(config: FleetConfig) -> int:
    """Return the number of the fleet's blocks."""
    return math.ceil(config.households / HOUSEHOLDS_PER_BLOCK)


def draw_register(config: FleetConfig) -> pl.DataFrame:
    """Return every household of the fleet: `household_id, tariff, acorn, acorn_group`."""
    random = config.create_generator(1)
    n = config.households
    shares = np.array(list(ACORN_COUNTS.values())) / sum(ACORN_COUNTS.values())
    acorn = random.choice(list(ACORN_COUNTS), size=n, p=shares)
    group = {
        f"ACORN-{letter}": name for name, letters in ACORN_GROUPS.items() for letter in letters
    }
    return pl.DataFrame(
        {
            "household_id": [f"MAC{number:06d}" for number in range(1, n + 1)],
            "tariff": np.where(random.random(n) < TOU_SHARE, "ToU", "Std"),
            "acorn": acorn,
        }
    ).with_columns(acorn_group=pl.col("acorn").replace(group))


def select_block_households(households: pl.DataFrame, block_number: int) -> pl.DataFrame:
    """Return the rows of the register that belong to one block."""
    return households[
        block_number * HOUSEHOLDS_PER_BLOCK : (block_number + 1) * HOUSEHOLDS_PER_BLOCK
    ]


def simulate_block_kwh(
    config: FleetConfig, environment: FleetEnvironment, households: pl.DataFrame, block_number: int
) -> Floats:
    """Return the readings `[n, D, 48]` of a block's `households`, without anomalies or defects."""
    log_level_shift = (
        households["acorn_group"].replace_strict(LOG_LEVEL_BY_GROUP, default=0.0).to_numpy()
    )
    random = config.create_generator(4, block_number)
    is_tou = (households["tariff"] == "ToU").to_numpy()
    behaviour = draw_behaviour(is_tou, log_level_shift.astype(np.float32), random)
    return readings.simulate_readings(behaviour, environment, random)


def simulate_block(
    config: FleetConfig, environment: FleetEnvironment, households: pl.DataFrame, block_number: int
) -> SimulatedBlock:
    """Draw one block's `households`: readings, injected anomalies, delivery."""
    kwh = simulate_block_kwh(config, environment, households, block_number)
    random = config.create_generator(5, block_number)
    first = block_number * HOUSEHOLDS_PER_BLOCK
    episodes = inject_episodes(kwh, _number_episodes(first, first + len(kwh)), random)
    # An injected night that never arrives could not be found.
    gapless = np.array([episode.household_index for episode in episodes], dtype=np.int64)
    delivery = delivery_defects.simulate_delivery(kwh, config, gapless, random)
    ids = households["household_id"]
    return SimulatedBlock(
        delivered=_build_readings_frame(delivery.rows, ids, config),
        correction=_build_readings_frame(delivery.correction, ids, config),
        truth=_build_truth(episodes, ids, config),
        defect_counts=delivery.defect_counts,
    )


def simulate_fleet_kwh(config: FleetConfig) -> Floats:
    """Return the readings `[H, D, 48]` of a small fleet, without anomalies or defects."""
    environment = build_environment(config)
    households = draw_register(config)
    blocks = [
        simulate_block_kwh(config, environment, select_block_households(households, number), number)
        for number in range(count_blocks(config))
    ]
    return np.concatenate(blocks)


def _number_episodes(first_household: int, end_household: int) -> range:
    """Return the numbers of the fleet's episodes that fall to these households.

    Whatever the blocks, the fleet has one episode in so many households, and kinds take turns.
    """
    return range(
        math.ceil(ANOMALOUS_HOUSEHOLD_SHARE * first_household),
        math.ceil(ANOMALOUS_HOUSEHOLD_SHARE * end_household),
    )


def _build_readings_frame(
    rows: delivery_defects.DeliveredRows, household_ids: pl.Series, config: FleetConfig
) -> pl.DataFrame:
    """Return rows as `household_id, ts_utc, kwh`, in their order."""
    start = list_half_hours_utc(config)[0]
    assert start is not None
    seconds = rows.half_hour_index * 1800 + rows.off_grid_s
    ts_utc = np.datetime64(start, "us") + seconds * np.timedelta64(1_000_000, "us")
    return pl.DataFrame(
        {
            "household_id": household_ids.gather(rows.household_index),
            "ts_utc": ts_utc,
            "kwh": pl.Series(rows.kwh, nan_to_null=True),
        }
    )


def _build_truth(
    episodes: list[SimulatedEpisode], household_ids: pl.Series, config: FleetConfig
) -> pl.DataFrame:
    rows = [
        (household_ids[episode.household_index], config.start + timedelta(days=day), episode.kind)
        for episode in episodes
        for day in episode.night_indices
    ]
    columns = {"household_id": pl.String, "night": pl.Date, "kind": pl.String}
    return InjectedAnomalies.validate(pl.DataFrame(rows, schema=columns, orient="row"))

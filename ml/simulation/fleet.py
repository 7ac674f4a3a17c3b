"""A simulated fleet of London-like households, by blocks that any order of drawing leaves alike.

config -> world (calendar, weather, prices)        surroundings
       -> habits -> readings [n, D, 48]            homes
       -> planted anomalies and their truth        anomalies
       -> delivered rows with the dirt of reality  dirt
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
TOU_SHARE: Final = 0.2
# Households of each Acorn category in the trial.
ACORN_COUNTS: Final = {
    **{"ACORN-A": 157, "ACORN-B": 25, "ACORN-C": 151, "ACORN-D": 292, "ACORN-E": 1567},
    **{"ACORN-F": 684, "ACORN-G": 205, "ACORN-H": 455, "ACORN-I": 51, "ACORN-J": 112},
    **{"ACORN-K": 165, "ACORN-L": 342, "ACORN-M": 113, "ACORN-N": 152, "ACORN-O": 103},
    **{"ACORN-P": 110, "ACORN-Q": 831, "ACORN-U": 49, "ACORN-": 2},
}
ACORN_GROUPS: Final = {"Affluent": "ABCDE", "Comfortable": "FGHIJ", "Adversity": "KLMNOPQ"}
LOG_LEVEL_BY_GROUP: Final = {"Affluent": 0.18, "Adversity": -0.15}


@dataclass(frozen=True)
class SimulatedBlock:
    """What a block of households delivers, with the truth about it."""

    delivered: pl.DataFrame  # household_id, ts_utc, kwh; null is a `Null`
    correction: pl.DataFrame  # the same, delivered later, and right
    truth: pl.DataFrame  # schemas.Truth
    defect_counts: dict[str, int]  # rows of each kind of dirt


def count_blocks(config: FleetConfig) -> int:
    """How many blocks the fleet has."""
    return math.ceil(config.households / HOUSEHOLDS_PER_BLOCK)


def draw_register(config: FleetConfig) -> pl.DataFrame:
    """Every household: household_id, tariff, acorn, acorn_group."""
    random, n = config.create_generator(1), config.households
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
    """The households of one block."""
    return households[
        block_number * HOUSEHOLDS_PER_BLOCK : (block_number + 1) * HOUSEHOLDS_PER_BLOCK
    ]


def simulate_block_kwh(
    config: FleetConfig, environment: FleetEnvironment, households: pl.DataFrame, block_number: int
) -> Floats:
    """The readings of the `households` of one block before anything goes wrong, [n, D, 48]."""
    wealth = households["acorn_group"].replace_strict(LOG_LEVEL_BY_GROUP, default=0.0).to_numpy()
    random = config.create_generator(4, block_number)
    is_tou = (households["tariff"] == "ToU").to_numpy()
    lived = draw_behaviour(is_tou, wealth.astype(np.float32), random)
    return readings.simulate_readings(lived, environment, random)


def simulate_block(
    config: FleetConfig, environment: FleetEnvironment, households: pl.DataFrame, block_number: int
) -> SimulatedBlock:
    """Draw the `households` of one block: readings, planted anomalies, delivery."""
    kwh = simulate_block_kwh(config, environment, households, block_number)
    first, random = block_number * HOUSEHOLDS_PER_BLOCK, config.create_generator(5, block_number)
    episodes = inject_episodes(kwh, _number_episodes(first, first + len(kwh)), random)
    spared = np.array([episode.household_index for episode in episodes], dtype=np.int64)
    delivery = delivery_defects.simulate_delivery(kwh, config, spared, random)
    ids = households["household_id"]
    return SimulatedBlock(
        delivered=_build_readings_frame(delivery.rows, ids, config),
        correction=_build_readings_frame(delivery.correction, ids, config),
        truth=_build_truth(episodes, ids, config),
        defect_counts=delivery.defect_counts,
    )


def simulate_fleet_kwh(config: FleetConfig) -> Floats:
    """The readings of a whole (small) fleet before anything goes wrong, [H, D, 48]."""
    surroundings, households = build_environment(config), draw_register(config)
    cubes = [
        simulate_block_kwh(
            config, surroundings, select_block_households(households, number), number
        )
        for number in range(count_blocks(config))
    ]
    return np.concatenate(cubes)


def _number_episodes(first_household: int, end_household: int) -> range:
    """The fleet's episodes that fall to the households `first` to `last`."""
    return range(
        math.ceil(ANOMALOUS_HOUSEHOLD_SHARE * first_household),
        math.ceil(ANOMALOUS_HOUSEHOLD_SHARE * end_household),
    )


def _build_readings_frame(
    rows: delivery_defects.DeliveredRows, household_ids: pl.Series, config: FleetConfig
) -> pl.DataFrame:
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

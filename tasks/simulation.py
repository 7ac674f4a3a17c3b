"""Writes a simulated fleet as it would be delivered, with the truth about it.

    OUT/halfhourly/block_<N>.parquet    readings, as Kaggle cuts them
    OUT/halfhourly/block_0.csv          a few households as the Datastore writes them
    OUT/halfhourly/correction.csv       a later delivery that puts some half-hours right
    OUT/{informations_households,weather_hourly_darksky,uk_bank_holidays,tariffs}.csv
    OUT/truth.parquet                   the injected household-nights
    OUT/simulation.json                 the configuration

All is written beside OUT first, then moved to its name: a killed run leaves OUT as it was.
"""

import shutil
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

import polars as pl
from pydantic import BaseModel
from rich.console import Console
from rich.progress import track

from ml.errors import UserError
from ml.schemas import TARIFF_PRICES
from ml.simulation import fleet
from ml.simulation.environment import (
    FleetConfig,
    FleetEnvironment,
    build_environment,
    list_bank_holidays,
    list_half_hours_utc,
)
from tasks import task

KAGGLE_COLUMNS: Final = {"household_id": "LCLid", "ts_utc": "tstp", "kwh": "energy(kWh/hh)"}
DATASTORE_COLUMNS: Final = ("LCLid", "stdorToU", "DateTime", "KWH/hh (per half hour) ")
N_DATASTORE_HOUSEHOLDS: Final = 8
"""Households of the first block that are delivered in the Datastore's format, slow to read."""
WRITTEN_NAMES: Final = {
    "halfhourly",
    "informations_households.csv",
    "weather_hourly_darksky.csv",
    "uk_bank_holidays.csv",
    "tariffs.csv",
    "truth.parquet",
    "simulation.json",
}
"""What OUT may hold to be replaced."""


class SimulateReceipt(BaseModel):
    """What was written."""

    out: Path
    n_households: int
    n_nights: int
    n_rows: int
    n_injected_households: int
    n_injected_nights: int
    defect_counts: dict[str, int]


def simulate(out: Path, config: FleetConfig) -> SimulateReceipt:
    """Write the fleet of a configuration to `out`; a fleet that is there is replaced.

    Raises:
        UserError: `out` is a file or holds something else, or cannot be written.
    """
    out = out.resolve()
    _refuse_foreign_directory(out)
    partial = out.with_name(f".{out.name}.partial")
    try:
        _remove_directory(partial)
        (partial / "halfhourly").mkdir(parents=True)
        receipt = _write_fleet(partial, config)
        _remove_directory(out)
        partial.rename(out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from None
    return receipt.model_copy(update={"out": out})


@task(name="write deliveries")
def write_deliveries(out: Path, config: FleetConfig) -> SimulateReceipt:
    """Write a simulated fleet as `simulate` does, as a step of a flow."""
    return simulate(out, config)


def _refuse_foreign_directory(out: Path) -> None:
    """Refuse a directory that holds anything but a simulated fleet: it would be deleted."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file, not a directory")
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    foreign = sorted(names - WRITTEN_NAMES)
    if foreign or (names and "simulation.json" not in names):
        raise UserError(
            f"{out}: holds {(foreign or sorted(names))[0]}, which simulate did not write"
        )


def _remove_directory(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)


def _write_fleet(out: Path, config: FleetConfig) -> SimulateReceipt:
    environment = build_environment(config)
    households = fleet.draw_register(config)
    (out / "simulation.json").write_text(config.model_dump_json(indent=2) + "\n")
    _write_households(out, households)
    _write_weather(out, config, environment)
    _write_holidays(out, config)
    _write_tariffs(out, config, environment)
    truth, defect_counts, n_rows = _write_readings(out, config, environment, households)
    truth.sort("household_id", "night").write_parquet(out / "truth.parquet")
    return SimulateReceipt(
        out=out,
        n_households=config.households,
        n_nights=config.days,
        n_rows=n_rows,
        n_injected_households=truth["household_id"].n_unique(),
        n_injected_nights=truth.height,
        defect_counts=dict(defect_counts),
    )


def _write_readings(
    out: Path, config: FleetConfig, environment: FleetEnvironment, households: pl.DataFrame
) -> tuple[pl.DataFrame, Counter[str], int]:
    """Write every block; return the truth, defective rows by rule, and rows delivered."""
    truths = []
    corrections = []
    defect_counts = Counter[str]()
    n_rows = 0
    spilled = pl.DataFrame()
    for number in _iter_with_progress(fleet.count_blocks(config)):
        members = fleet.select_block_households(households, number)
        block = fleet.simulate_block(config, environment, members, number)
        delivered = block.delivered
        if number == 0:
            delivered = _write_datastore_csv(out, delivered, members)
        now, later = _split_last_household(delivered, members, config)
        is_last = number == fleet.count_blocks(config) - 1
        _write_block(out, number, [spilled, now, later] if is_last else [spilled, now])
        spilled = later
        truths.append(block.truth)
        corrections.append(block.correction)
        defect_counts.update(block.defect_counts)
        n_rows += block.delivered.height + block.correction.height
    _write_correction(out, pl.concat(corrections))
    return pl.concat(truths), defect_counts, n_rows


def _iter_with_progress(n_blocks: int) -> Iterator[int]:
    console = Console(stderr=True)
    yield from track(
        range(n_blocks), description="simulate", console=console, disable=not console.is_terminal
    )


def _split_last_household(
    delivered: pl.DataFrame, block_households: pl.DataFrame, config: FleetConfig
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split off the later half of the block's last household, which the next file begins with.

    As in the trial's files, where a household may span two.
    """
    middle = datetime.combine(config.nights[config.days // 2], datetime.min.time())
    is_later = (pl.col("household_id") == block_households["household_id"][-1]) & (
        pl.col("ts_utc") >= middle
    )
    return delivered.filter(~is_later), delivered.filter(is_later)


def _write_block(out: Path, block_number: int, parts: list[pl.DataFrame]) -> None:
    block = pl.concat([part for part in parts if part.height], rechunk=True).rename(KAGGLE_COLUMNS)
    block.write_parquet(out / f"halfhourly/block_{block_number}.parquet", compression="zstd")


def _write_datastore_csv(
    out: Path, delivered: pl.DataFrame, block_households: pl.DataFrame
) -> pl.DataFrame:
    """Write a few households as the Datastore does; return the rows of the others."""
    chosen_households = block_households.head(
        min(N_DATASTORE_HOUSEHOLDS, block_households.height // 2)
    )
    rows = delivered.join(chosen_households, on="household_id", maintain_order="left")
    if rows.height:
        cells = rows.select(
            "household_id",
            "tariff",
            pl.col("ts_utc").dt.strftime("%Y-%m-%d %H:%M:%S.0000000"),
            _pad_cells(pl.col("kwh")),
        ).rename(
            dict(zip(("household_id", "tariff", "ts_utc", "kwh"), DATASTORE_COLUMNS, strict=True))
        )
        cells.write_csv(out / "halfhourly/block_0.csv", line_terminator="\r\n")
    return delivered.join(chosen_households, on="household_id", how="anti", maintain_order="left")


def _pad_cells(kwh: pl.Expr) -> pl.Expr:
    """Return cells as the Datastore writes them: between spaces, whole numbers bare, `Null`."""
    digits = pl.concat_str(pl.lit(" "), kwh.cast(pl.String).str.strip_suffix(".0"), pl.lit(" "))
    return digits.fill_null("Null").alias("kwh")


def _write_correction(out: Path, correction: pl.DataFrame) -> None:
    if correction.height:
        cells = correction.with_columns(
            pl.col("ts_utc").dt.strftime("%Y-%m-%d %H:%M:%S"), _pad_cells(pl.col("kwh"))
        )
        cells.rename(KAGGLE_COLUMNS).write_csv(out / "halfhourly/correction.csv")


def _write_households(out: Path, households: pl.DataFrame) -> None:
    # As in the trial, one household of the readings has no entry.
    registered = households.head(-1) if households.height >= 100 else households
    block = pl.int_range(pl.len()) // fleet.HOUSEHOLDS_PER_BLOCK
    table = registered.select(
        LCLid="household_id",
        stdorToU="tariff",
        Acorn="acorn",
        Acorn_grouped="acorn_group",
        file=pl.format("block_{}", block),
    )
    table.write_csv(out / "informations_households.csv")


def _write_weather(out: Path, config: FleetConfig, environment: FleetEnvironment) -> None:
    hourly = pl.DataFrame(
        {
            "temperature": environment.temperature_c[::2],
            "time": list_half_hours_utc(config)[::2].dt.strftime("%Y-%m-%d %H:%M:%S"),
            "humidity": environment.humidity[::2],
        }
    )
    # As delivered in the trial: not sorted by time, now and then two hours missing.
    third = hourly.height // 3
    hourly = pl.concat([hourly[third:], hourly[:third]])
    hourly = hourly.filter(pl.int_range(pl.len()) % 10_000 // 2 != 500)
    hourly.write_csv(out / "weather_hourly_darksky.csv", float_precision=2)


def _write_holidays(out: Path, config: FleetConfig) -> None:
    name_by_day = list_bank_holidays(config)
    table = pl.DataFrame({"Bank holidays": list(name_by_day), "Type": list(name_by_day.values())})
    table.write_csv(out / "uk_bank_holidays.csv")


def _write_tariffs(out: Path, config: FleetConfig, environment: FleetEnvironment) -> None:
    # Each price ends in a stray carriage return, as the published signal does.
    prices = pl.Series([f"{price}\r" for price in TARIFF_PRICES])
    cells = pl.DataFrame(
        {
            "TariffDateTime": list_half_hours_utc(config).dt.strftime("%Y-%m-%d %H:%M:%S"),
            "Tariff": prices.gather(environment.price_index),
        }
    )
    cells.write_csv(out / "tariffs.csv", quote_style="non_numeric")

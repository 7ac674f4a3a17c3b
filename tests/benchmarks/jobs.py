"""Jobs that are timed: ours, and those of other tools that do the same work.

A job takes a source and a scratch directory, which is METERWATCH_HOME of its process.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import torch
from pyod.models.ecod import ECOD
from pyod.models.knn import KNN
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from flows.backfill import backfill
from flows.ingest import ingest
from flows.train import train
from ml.conditions import CONDITIONS
from ml.fleet import Fleet
from ml.models import DEFAULT_MODEL, import_network_class
from ml.models.base import Windows, compute_log_readings
from ml.models.conditional_autoencoder import ConditionalAutoencoder, ConditionalAutoencoderConfig
from ml.schemas import HALF_HOURS
from ml.training.data import build_data_module
from ml.training.lightning_module import NetworkModule
from ml.training.parameters import FitParameters
from ml.training.split import usable_household_nights
from ml.training.trainer import build_trainer, suppress_expected_warnings
from ml.windows import FleetWindows
from tasks import queries, storage
from tasks.fleet_loading import load_fleet
from tasks.scoring import score_span
from tasks.training_job import TrainParameters

PIVOT_CELLS_SQL = ", ".join(f"max(CASE WHEN slot = {slot} THEN kwh END)" for slot in range(48))
DUCKDB_INGEST_SQL = f"""
    COPY (
        SELECT household_id, night, [{PIVOT_CELLS_SQL}] AS kwh FROM (
            SELECT LCLid AS household_id, tstp::DATE AS night, "energy(kWh/hh)"::FLOAT AS kwh,
                epoch(tstp)::BIGINT % 86400 // 1800 AS slot
            FROM '{{source}}/*.parquet'
            WHERE "energy(kWh/hh)" BETWEEN 0 AND 12 AND epoch_us(tstp) % 1800000000 = 0
        ) GROUP BY ALL ORDER BY night, household_id
    ) TO '{{out}}' (FORMAT parquet, COMPRESSION zstd)
"""
N_EPOCHS = 4
"""Epochs of each training that is timed."""
MIN_READINGS = 36


def ingest_ours(source: Path, scratch: Path) -> None:
    """Ingest as the product does, quarantine and ledgers included."""
    ingest.fn([str(source)])


def ingest_duckdb(source: Path, scratch: Path) -> None:
    """Write one row a household-night with the largest reading of a half-hour; no quarantine."""
    duckdb.execute(f"SET enable_progress_bar = false; SET temp_directory = '{scratch}'")
    duckdb.execute(DUCKDB_INGEST_SQL.format(source=source, out=scratch / "profiles.parquet"))


def ingest_pandas(source: Path, scratch: Path) -> None:
    """Do the same as people write it first."""
    rows = pd.concat([pd.read_parquet(path) for path in sorted(source.glob("*.parquet"))])
    kwh = rows["energy(kWh/hh)"]
    rows = rows[kwh.between(0, 12) & (rows["tstp"].dt.minute % 30 == 0)]
    rows = rows.assign(night=rows["tstp"].dt.date, slot=rows["tstp"].dt.time)
    days = rows.pivot_table(
        index=["LCLid", "night"], columns="slot", values="energy(kWh/hh)", aggfunc="max"
    )
    days.columns = days.columns.astype(str)
    days.to_parquet(scratch / "profiles.parquet", compression="zstd")


def convert_csv_polars(source: Path, scratch: Path) -> None:
    """Convert CSV to Parquet as it is, without any check."""
    pl.scan_csv(source / "*.csv").sink_parquet(scratch / "rows.parquet")


def train_champion(source: Path, scratch: Path) -> None:
    """Train a champion of two epochs, for the nights to be scored with."""
    ingest.fn([str(source)])
    train.fn(TrainParameters(max_epochs=2))
    shutil.rmtree(scratch / "lake")


def score_first_night(source: Path, scratch: Path) -> None:
    """Score a night without a score cache: its warm-up nights go through the network too."""
    _score_night(1)


def score_next_night(source: Path, scratch: Path) -> float:
    """Score the next night, as happens every night: load, network, calibration, tables."""
    return _score_night(0)


def score_fortnight(source: Path, scratch: Path) -> float:
    """Score a fortnight in bulk."""
    last = storage.read_night_range()[1]
    return backfill.fn(last - timedelta(days=13), last).n_household_nights


def _score_night(nights_ago: int) -> float:
    night = storage.read_night_range()[1] - timedelta(days=nights_ago)
    return score_span((night, night)).n_household_nights


def score_seed_model(source: Path, scratch: Path) -> float:
    """Score the seed's way: its autoencoder, called for a household at a time."""
    fleet = _load_recent_fleet(60)
    network = ConditionalAutoencoder(ConditionalAutoencoderConfig()).eval()
    windows = FleetWindows(fleet, 0, MIN_READINGS)
    last = torch.arange(len(fleet.nights) - 1, fleet.kwh[..., 0].size, len(fleet.nights))
    with torch.inference_mode():
        return float(
            sum(network(windows.gather_windows(place[None])).log_odds.numel() for place in last)
        )


def score_ecod(source: Path, scratch: Path) -> float:
    """Score a night by PyOD's detector without parameters, fitted on a month."""
    return _score_pyod(ECOD())


def score_knn(source: Path, scratch: Path) -> float:
    """Score a night by PyOD's nearest neighbours, its best baseline."""
    return _score_pyod(KNN())


def _score_pyod(detector: ECOD | KNN) -> float:
    """Return the seconds of the decision function alone, after a fit on a month of profiles."""
    profiles = (
        compute_log_readings(_build_usable_windows(_load_recent_fleet(30)))
        .nan_to_num()[:, -1]
        .numpy()
    )
    detector.fit(profiles[:20_000])
    started = time.perf_counter()
    detector.decision_function(profiles[-5567:])
    return time.perf_counter() - started


def _load_recent_fleet(n_nights: int, *, reporting: bool = False) -> Fleet:
    last = storage.read_night_range()[1]
    return load_fleet(last - timedelta(days=n_nights - 1), last, only_reporting=reporting)


def _build_usable_windows(fleet: Fleet) -> Windows:
    windows = FleetWindows(fleet, 0, MIN_READINGS)
    return windows.gather_windows(usable_household_nights(fleet, MIN_READINGS))


def load_features(source: Path, scratch: Path) -> None:
    """Load a fleet and its conditions over 112 nights."""
    _load_recent_fleet(112)


def train_ours(source: Path, scratch: Path) -> float:
    """Return household-nights a second of our training loop, on the seed's autoencoder."""
    parameters = FitParameters(
        model="conditional_autoencoder", max_epochs=N_EPOCHS, epoch_size=1 << 30
    )
    network = _build_seed_network()
    data = build_data_module(
        network, _load_recent_fleet(60, reporting=True), parameters, MIN_READINGS
    )
    loop = build_trainer(parameters, str(scratch / "checkpoints"))
    module = NetworkModule(network, parameters)
    with suppress_expected_warnings():
        started = time.perf_counter()
        loop.trainer.fit(module, datamodule=data)
        seconds = time.perf_counter() - started
    print(f"    validation loss {module.epoch_metrics[-1]['val_loss']:.4f}")
    return N_EPOCHS * len(data.train_indices) / seconds


def train_seed_loop(source: Path, scratch: Path) -> float:
    """Train by a data loader over a data set, 1,024 at a time, reading the loss at each step."""
    x, conditions, validation = _load_tensors()
    batches = DataLoader(TensorDataset(x, conditions), batch_size=1024, shuffle=True)
    return _time_training(lambda: batches, len(x), 1e-3, validation, reads_loss=True)


def train_plain_loop(source: Path, scratch: Path) -> float:
    """Train by a plain loop over batches by index, 1,024 at a time."""
    x, conditions, validation = _load_tensors()

    def batches() -> Iterator[tuple[torch.Tensor, ...]]:
        for places in torch.randperm(len(x)).split(1024):
            yield x[places], conditions[places]

    return _time_training(batches, len(x), 1e-3, validation, reads_loss=False)


def _time_training(
    batches: Callable[[], object],
    n_household_nights: int,
    learning_rate: float,
    validation: tuple[torch.Tensor, torch.Tensor],
    *,
    reads_loss: bool,
) -> float:
    network = _build_seed_network()
    optimizer = torch.optim.Adam(network.parameters(), learning_rate)
    total = 0.0
    started = time.perf_counter()
    for _ in range(N_EPOCHS):
        for x, conditions in batches():
            loss = _reconstruction_error(network, x, conditions)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            # Reading the loss waits for the step, which costs on a GPU.
            total += loss.item() if reads_loss else 0.0
    seconds = time.perf_counter() - started
    with torch.no_grad():
        error = _reconstruction_error(network, *validation)
    print(f"    validation loss {error:.4f}")
    return N_EPOCHS * n_household_nights / seconds


def _reconstruction_error(
    network: ConditionalAutoencoder, x: torch.Tensor, conditions: torch.Tensor
) -> torch.Tensor:
    predicted = network.decode(network.encode(x, conditions), conditions)
    return ((predicted - x) ** 2).mean()


def count_inference_gflop() -> float:
    """Return the GFLOP of products and convolutions when the default network scores one night."""
    network = import_network_class(DEFAULT_MODEL)(
        import_network_class(DEFAULT_MODEL).config_class()
    ).eval()
    window = torch.ones(1, network.context_nights + 1, HALF_HOURS)
    with torch.inference_mode(), FlopCounterMode(display=False) as counted:
        network(Windows(window, torch.ones(1), torch.zeros(1, len(CONDITIONS))))
    return float(counted.get_total_flops()) / 1e9


def count_training_gflop() -> float:
    """Return the GFLOP when the seed's autoencoder trains on one night, forward and backward."""
    network = _build_seed_network()
    day = Windows(torch.ones(2, 1, HALF_HOURS), torch.ones(2), torch.zeros(2, len(CONDITIONS)))
    with FlopCounterMode(display=False) as counted:
        network.loss(day).backward()
    return float(counted.get_total_flops()) / 2 / 1e9


def _build_seed_network() -> ConditionalAutoencoder:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return ConditionalAutoencoder(ConditionalAutoencoderConfig())


def _load_tensors() -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Return standardised readings and conditions to train on, and those of held-out households."""
    network = _build_seed_network()
    parameters = FitParameters(model="conditional_autoencoder")
    data = build_data_module(
        network, _load_recent_fleet(60, reporting=True), parameters, MIN_READINGS
    )

    def standardize(places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        windows = data.windows.gather_windows(places)
        x = network.reading_standardizer(compute_log_readings(windows))[:, -1]
        return x.nan_to_num(), network.condition_standardizer(windows.conditions).nan_to_num()

    x, conditions = standardize(data.train_indices)
    return x, conditions, standardize(data.validation_indices)


def fill_tables(source: Path, scratch: Path) -> None:
    """Write 850 nights of result tables: the last scored night over and over."""
    last = storage.read_night_range()[1]
    for table in ("scores", "anomalies", "nights"):
        of_night = storage.collect_with_retry(
            storage.scan_table(table).filter(pl.col("night") == last)
        )
        for nights_ago in range(1, 850):
            earlier = last - timedelta(days=nights_ago)
            storage.replace_night(
                table, earlier, of_night.with_columns(night=pl.lit(earlier, pl.Date))
            )


def run_every_query(source: Path, scratch: Path) -> float:
    """Run every named query; return the seconds of the slowest."""
    last = storage.read_night_range()[1]
    return max(_time_query(name, last) for name in queries.list_queries())


def _time_query(name: str, last_night: date) -> float:
    values = {"of_household": "MAC000010", "of_night": str(last_night)}
    parameters = {parameter.name for parameter in queries.list_queries()[name].parameters}
    started = time.perf_counter()
    queries.run_query(name, {key: value for key, value in values.items() if key in parameters})
    return time.perf_counter() - started

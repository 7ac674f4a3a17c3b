"""The simulated fleet: the same for a seed, with a true truth and counted defects."""

import subprocess
import sys
from collections import Counter
from datetime import date, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ml.errors import UserError
from ml.evaluation.injections import MIN_VISIBLE_SHARE
from ml.schemas import InjectedAnomalies
from ml.simulation import fleet
from ml.simulation.anomalies import RECENT_NIGHTS, SIMULATED_KINDS
from ml.simulation.delivery_defects import SENTINEL_KWH
from ml.simulation.environment import FleetConfig, Floats, build_environment
from tasks.simulation import SimulateReceipt, simulate

SMALL = FleetConfig(households=300, days=45, start=date(2013, 10, 1), seed=7)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("simulate") / "fleet"


@pytest.fixture(scope="module")
def receipt(out: Path) -> SimulateReceipt:
    return simulate(out, SMALL)


def read_directory_bytes(directory: Path) -> dict[str, bytes]:
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def read_delivered_rows(directory: Path) -> pl.DataFrame:
    """Every delivered row, in the order of the files' names: household_id, ts_utc, kwh, file."""
    parts = []
    for path in sorted((directory / "halfhourly").iterdir()):
        rows = pl.read_parquet(path) if path.suffix == ".parquet" else read_delivered_csv(path)
        rows.columns = ["household_id", "ts_utc", "kwh"]
        parts.append(rows.with_columns(file=pl.lit(path.name)))
    return pl.concat(parts)


def read_delivered_csv(path: Path) -> pl.DataFrame:
    rows = pl.read_csv(path, infer_schema=False)
    stamp = pl.col(rows.columns[-2]).str.head(19).str.to_datetime(time_unit="us")
    kwh = pl.col(rows.columns[-1]).replace("Null", None).str.strip_chars().cast(pl.Float64)
    return rows.select("LCLid", stamp, kwh)


def build_valid_kwh(rows: pl.DataFrame, config: FleetConfig) -> Floats:
    """Valid readings [H, D, 48], the last delivered of each half-hour, NaN where there is none."""
    start = datetime.combine(config.start, datetime.min.time())
    minutes = (pl.col("ts_utc") - start).dt.total_minutes()
    valid = rows.filter(
        pl.col("kwh").is_between(0, 12), pl.col("ts_utc") == pl.col("ts_utc").dt.truncate("30m")
    ).select(
        household=pl.col("household_id").str.slice(3).cast(pl.Int64) - 1,
        half_hour=minutes // 30,
        kwh="kwh",
    )
    kwh = np.full((config.households, config.days * 48), np.nan, dtype=np.float32)
    kwh[valid["household"].to_numpy(), valid["half_hour"].to_numpy()] = valid["kwh"].to_numpy()
    return kwh.reshape(config.households, config.days, 48)


# --- the same fleet ------------------------------------------------------------------------------


def test_same_seed_writes_identical_bytes(
    out: Path, receipt: SimulateReceipt, tmp_path: Path
) -> None:
    again = simulate(tmp_path / "again", SMALL)
    assert read_directory_bytes(tmp_path / "again") == read_directory_bytes(out)
    assert again.defect_counts == receipt.defect_counts


def test_different_seeds_give_different_readings() -> None:
    one, two = (
        fleet.simulate_fleet_kwh(FleetConfig(households=3, days=3, seed=seed)) for seed in (1, 2)
    )
    assert (one != two).mean() > 0.5


def test_blocks_do_not_depend_on_simulation_order() -> None:
    environment = build_environment(SMALL)
    households = fleet.draw_register(SMALL)
    members = [fleet.select_block_households(households, number) for number in range(2)]
    in_order = [fleet.simulate_block(SMALL, environment, members[n], n).delivered for n in (0, 1)]
    backwards = [fleet.simulate_block(SMALL, environment, members[n], n).delivered for n in (1, 0)]
    assert in_order[0].equals(backwards[1])
    assert in_order[1].equals(backwards[0])


def test_blocks_have_different_readings() -> None:
    environment = build_environment(SMALL)
    members = fleet.select_block_households(fleet.draw_register(SMALL), 0)
    first, second = (fleet.simulate_block_kwh(SMALL, environment, members, n) for n in (0, 1))
    assert (first != second).mean() > 0.5


# --- the truth -----------------------------------------------------------------------------------


def test_truth_marks_exactly_the_injected_nights(out: Path, receipt: SimulateReceipt) -> None:
    before = fleet.simulate_fleet_kwh(SMALL)
    after = build_valid_kwh(read_delivered_rows(out), SMALL)
    truth = pl.read_parquet(out / "truth.parquet")
    change = np.nansum(np.abs(after - before), axis=2)
    is_injected = np.zeros(change.shape, dtype=bool)
    household = truth["household_id"].str.slice(3).cast(pl.Int64).to_numpy() - 1
    day = (truth["night"] - SMALL.start).dt.total_days().to_numpy()
    is_injected[household, day] = True
    # Single half-hours may be missing, hence not quite the visible share; elsewhere only
    # the float noise of 1e-7 and the rounding of Float32 remain.
    usual = np.median(before.sum(axis=2), axis=1, keepdims=True)
    assert (change >= 0.7 * MIN_VISIBLE_SHARE * usual)[is_injected].all()
    assert change[~is_injected].max() < 1e-4
    assert receipt.n_injected_nights == truth.height == is_injected.sum()


def test_truth_is_valid_and_covers_recent_nights(out: Path, receipt: SimulateReceipt) -> None:
    truth = InjectedAnomalies.validate(pl.read_parquet(out / "truth.parquet"))
    assert set(truth["kind"]) <= set(SIMULATED_KINDS)
    # 3 % of 300 households are 9; one whose change would not show may be left out.
    assert 8 <= receipt.n_injected_households <= 9
    assert truth["night"].min() >= SMALL.nights[-SMALL.days // 3]  # type: ignore[operator]
    recent = truth.filter(pl.col("night") >= SMALL.nights[-RECENT_NIGHTS])
    assert recent["household_id"].n_unique() >= 5  # every other episode begins there


def test_every_kind_is_injected_within_the_period() -> None:
    config = FleetConfig(households=600, days=60, seed=3)
    environment = build_environment(config)
    households = fleet.draw_register(config)
    kinds: Counter[str] = Counter()
    for number in range(fleet.count_blocks(config)):
        members = fleet.select_block_households(households, number)
        truth = fleet.simulate_block(config, environment, members, number).truth
        kinds.update(truth["kind"])
        assert truth["night"].is_between(config.nights[40], config.nights[-1]).all()
    assert set(kinds) == set(SIMULATED_KINDS)
    assert kinds["ramp"] >= 5  # a ramp needs nights


# --- the delivery --------------------------------------------------------------------------------


def test_readings_files_have_delivered_formats(out: Path, receipt: SimulateReceipt) -> None:
    names = sorted(path.name for path in (out / "halfhourly").iterdir())
    assert names == ["block_0.csv", "block_0.parquet", "block_1.parquet", "correction.csv"]
    kaggle = {"LCLid": pl.String, "tstp": pl.Datetime("us"), "energy(kWh/hh)": pl.Float64}
    for number in (0, 1):
        assert pl.read_parquet_schema(out / f"halfhourly/block_{number}.parquet") == kaggle
    head, row = (out / "halfhourly/block_0.csv").read_bytes().split(b"\r\n")[:2]
    assert head == b"LCLid,stdorToU,DateTime,KWH/hh (per half hour) "
    _, tariff, stamp, kwh = row.decode().split(",")
    assert tariff in ("Std", "ToU")
    assert stamp.endswith(".0000000")
    assert kwh == f" {kwh.strip()} "
    correction = (out / "halfhourly/correction.csv").read_text().splitlines()
    assert correction[0] == "LCLid,tstp,energy(kWh/hh)"


def test_reference_tables_match_real_schemas(
    out: Path, receipt: SimulateReceipt, london: Path
) -> None:
    for name in ("informations_households.csv", "uk_bank_holidays.csv", "tariffs.csv"):
        assert pl.read_csv(out / name).schema == pl.read_csv(london / name).schema
    ours = pl.read_csv(out / "weather_hourly_darksky.csv", try_parse_dates=True).schema
    theirs = pl.read_csv(london / "weather_hourly_darksky.csv", try_parse_dates=True).schema
    assert ours.items() <= theirs.items()
    assert b'"Normal\r"\n' in (out / "tariffs.csv").read_bytes()


def test_delivery_defects_match_reported_counts(out: Path, receipt: SimulateReceipt) -> None:
    rows = read_delivered_rows(out)
    assert receipt.n_rows == rows.height
    off_grid = rows["ts_utc"] != rows["ts_utc"].dt.truncate("30m")
    key = ["household_id", "ts_utc"]
    late = rows.filter(pl.col("file") == "correction.csv")
    first = rows.filter(pl.col("file") != "correction.csv")
    found = {
        "null": rows["kwh"].null_count(),
        "sentinel": (rows["kwh"] == SENTINEL_KWH).sum(),
        "negative": (rows["kwh"] < 0).sum(),
        "duplicate": first.height - first.unique(key).height,
        "superseded": late.height,
    }
    assert found == receipt.defect_counts
    assert (rows["kwh"].is_null() == off_grid).all()
    # Within the first delivery a half-hour that comes twice is the same twice.
    assert first.unique([*key, "kwh"]).height == first.unique(key).height
    assert (
        late.join(first, on=key, how="inner")
        .filter(pl.col("kwh") == pl.col("kwh_right"))
        .is_empty()
    )
    assert late.join(first, on=key, how="inner").height == late.height > 0


def test_household_spans_two_files_and_some_readings_are_missing(
    out: Path, receipt: SimulateReceipt
) -> None:
    rows = read_delivered_rows(out).filter(pl.col("file") != "correction.csv")
    files = rows.group_by("household_id").agg(pl.col("file").n_unique())
    assert files.filter(pl.col("file") > 1)["household_id"].to_list() == ["MAC000256"]
    missing = np.isnan(build_valid_kwh(read_delivered_rows(out), SMALL))
    assert 0.001 < missing.mean() < 0.05
    assert (missing.any(axis=2) & ~missing.all(axis=2)).any()
    assert not missing.all(axis=(1, 2)).any()


def test_invalid_readings_appear_in_larger_fleet() -> None:
    config = FleetConfig(households=256, days=200, seed=1)
    members = fleet.select_block_households(fleet.draw_register(config), 0)
    block = fleet.simulate_block(config, build_environment(config), members, 0)
    # 2e-6 of 2.5 million readings are 5 of each.
    assert block.defect_counts["sentinel"] == (block.delivered["kwh"] == SENTINEL_KWH).sum() > 0
    assert block.defect_counts["negative"] == (block.delivered["kwh"] < 0).sum() > 0


@hypothesis_settings(max_examples=25, deadline=None)
@given(
    households=st.integers(1, 5),
    days=st.integers(1, 10),
    start=st.dates(date(2011, 11, 1), date(2014, 2, 28)),
    seed=st.integers(0, 2**31 - 1),
)
def test_small_fleet_delivers_every_household_within_period(
    tmp_path_factory: pytest.TempPathFactory, households: int, days: int, start: date, seed: int
) -> None:
    config = FleetConfig(households=households, days=days, start=start, seed=seed)
    out = tmp_path_factory.mktemp("small") / "fleet"
    simulate(out, config)
    rows, truth = read_delivered_rows(out), pl.read_parquet(out / "truth.parquet")
    assert set(rows["household_id"]) == set(fleet.draw_register(config)["household_id"])
    assert rows["ts_utc"].dt.date().is_between(config.nights[0], config.nights[-1]).all()
    nights = rows.filter(pl.col("kwh").is_not_null()).select(
        "household_id", night=pl.col("ts_utc").dt.date()
    )
    assert truth.join(nights, on=["household_id", "night"], how="anti").is_empty()


# --- what a user may do wrong --------------------------------------------------------------------


def test_foreign_directory_is_refused_and_unchanged(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match=r"holds mine\.txt, which simulate did not write"):
        simulate(tmp_path, FleetConfig(households=1, days=1))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_file_as_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        simulate(tmp_path / "file", FleetConfig(households=1, days=1))


def test_existing_fleet_is_replaced_completely(tmp_path: Path) -> None:
    simulate(tmp_path / "fleet", FleetConfig(households=300, days=2))
    simulate(tmp_path / "fleet", FleetConfig(households=2, days=2))
    simulate(tmp_path / "anew", FleetConfig(households=2, days=2))
    assert read_directory_bytes(tmp_path / "fleet") == read_directory_bytes(tmp_path / "anew")


def test_killed_run_keeps_previous_fleet(tmp_path: Path) -> None:
    out, config = tmp_path / "fleet", FleetConfig(households=2, days=2)
    simulate(out, config)
    before = read_directory_bytes(out)
    program = (
        "import os, sys; from pathlib import Path; from ml.simulation import fleet\n"
        "from ml.simulation.environment import FleetConfig; from tasks.simulation import simulate\n"
        "fleet.simulate_block = lambda *_: os._exit(9)\n"
        "simulate(Path(sys.argv[1]), FleetConfig(households=400, days=2))"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(out)], check=False)
    assert killed.returncode == 9
    assert read_directory_bytes(out) == before
    simulate(out, config)
    assert [path.name for path in tmp_path.iterdir()] == ["fleet"]


@pytest.mark.parametrize(
    "wrong", [{"households": 0}, {"days": 0}, {"seed": -1}, {"start": date(1066, 10, 14)}]
)
def test_invalid_fleet_config_is_refused(wrong: dict[str, int | date]) -> None:
    with pytest.raises(ValidationError):
        FleetConfig.model_validate(wrong)

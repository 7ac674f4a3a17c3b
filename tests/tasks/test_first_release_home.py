"""A home that release 0.1.0 wrote is read, scored and queried, also with columns and reasons added.

`tests/homes/release_0_1_0.tar.gz` holds it: 24 simulated households over 60 nights, scored on three
nights by a conditional autoencoder (version 1) and on six by a small history network (version 2),
both written by that release. It holds no MLflow store: versions load from their local copies.
"""

import shutil
from datetime import date, timedelta
from pathlib import Path

import dataframely as dy
import polars as pl
import pytest

import ml.scoring.tables
import sql
from flows.score import score
from ml.schemas import ANOMALY_REASONS, FORMER_COLUMN_NAMES, Anomalies, Episodes, Nights, Scores
from tasks import queries, storage
from tasks.model_files import load_detector
from tasks.scoring import score_span

ARCHIVE = Path(__file__).parents[1] / "homes/release_0_1_0.tar.gz"
NIGHTS_BY_VERSION = {
    "1": (date(2013, 10, 19), date(2013, 10, 21)),
    "2": (date(2013, 10, 22), date(2013, 10, 27)),
}
NEXT_NIGHT = date(2013, 10, 28)
QUERY_NAMES = sorted(path.stem for path in Path(sql.__file__).parent.glob("macros/*.sql"))
NEW_REASON = "reverse_flow"


@pytest.fixture
def first_release_home(home: Path) -> Path:
    shutil.unpack_archive(ARCHIVE, home.parent, filter="data")
    assert home.is_dir()
    return home


def read_stored(home: Path, table: str, first: date, last: date) -> pl.DataFrame:
    """The rows as the earlier release wrote them, under the present names, words as text."""
    nights = pl.date_range(first, last, eager=True)
    frame = pl.concat(
        pl.read_parquet(home / f"tables/{table}/night={night}/{table}.parquet") for night in nights
    )
    former = {old: new for new, old in FORMER_COLUMN_NAMES.get(table, {}).items()}
    return frame.rename(former, strict=False).with_columns(pl.col(pl.Enum).cast(pl.String))


def set_champion(home: Path, version: str) -> None:
    text = f'{{"version": "{version}", "run_id": "run-{version}"}}'
    (home / "models/champion.json").write_text(text)


@pytest.mark.parametrize("version", NIGHTS_BY_VERSION)
def test_nights_scored_again_equal_those_of_the_first_release(
    first_release_home: Path, version: str
) -> None:
    first, last = NIGHTS_BY_VERSION[version]
    set_champion(first_release_home, version)
    before = {
        name: read_stored(first_release_home, name, first, last)
        for name in ("scores", "anomalies", "nights")
    }
    assert before["scores"]["is_anomaly"].any()
    score_span((first, last))
    for name, frame in before.items():
        written = storage.collect_with_retry(storage.scan_nights(name, first, last))
        assert written.select(frame.columns).equals(frame), name


@pytest.mark.parametrize("table", storage.TABLE_SCHEMAS)
def test_every_table_is_read_with_the_present_columns(first_release_home: Path, table: str) -> None:
    frame = storage.read_table(table)
    schema = storage.TABLE_SCHEMAS[table]
    assert frame.columns == schema.column_names()
    assert frame.schema == schema.create_empty().schema
    if table in FORMER_COLUMN_NAMES:
        renamed = list(FORMER_COLUMN_NAMES[table])
        assert frame.select(pl.col(renamed).is_not_null().any()).row(0) == (True,) * len(renamed)


@pytest.mark.parametrize("name", QUERY_NAMES)
def test_named_query_answers(first_release_home: Path, name: str) -> None:
    household = {"household_id": "MAC000001"} if name == "household_history" else {}
    assert queries.run_query(name, household).columns


def test_checks_pass_before_and_after_the_next_night(first_release_home: Path) -> None:
    for _ in range(2):
        assert all(rows.is_empty() for rows in queries.run_checks().values())
        score.fn(NEXT_NIGHT)


def test_reason_and_column_are_added_without_rewriting_earlier_nights(
    first_release_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_reason_and_column(tmp_path / "later_sql", monkeypatch)
    earlier = NEXT_NIGHT - timedelta(days=1)
    before = (first_release_home / f"tables/scores/night={earlier}/scores.parquet").read_bytes()

    receipt = score.fn(NEXT_NIGHT)

    assert receipt.n_flagged > 0
    after = (first_release_home / f"tables/scores/night={earlier}/scores.parquet").read_bytes()
    assert after == before
    scores = storage.collect_with_retry(storage.scan_nights("scores", earlier, NEXT_NIGHT))
    is_next = pl.col("night") == NEXT_NIGHT
    assert scores.filter(is_next)["confidence"].null_count() == 0
    assert scores.filter(~is_next)["confidence"].null_count() == len(scores.filter(~is_next))
    flagged = scores.filter(is_next, pl.col("is_anomaly"))
    assert set(flagged["reason"]) == {NEW_REASON}
    episodes = storage.read_table("episodes")
    assert NEW_REASON in set(episodes["reason"])
    by_sql = queries.run_query(
        f"SELECT night, reason, confidence FROM scores WHERE night >= '{earlier}' AND is_anomaly"
    )
    assert set(by_sql.filter(is_next)["reason"]) == {NEW_REASON}
    assert by_sql.filter(~is_next)["confidence"].is_null().all()


def add_reason_and_column(sql_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later release: a reason that every flagged night gets, and a column `confidence`."""
    shutil.copytree(Path(sql.__file__).parent, sql_dir)
    tables = (sql_dir / "tables.sql").read_text()
    of_scores = "'expected_kwh': 'FLOAT',\n    'reason': 'VARCHAR',"
    assert of_scores in tables
    later_tables = tables.replace(of_scores, of_scores + "\n    'confidence': 'FLOAT',")
    (sql_dir / "tables.sql").write_text(later_tables)
    monkeypatch.setattr(queries, "files", lambda _package: sql_dir)
    with_new_reason = f"^({'|'.join((*ANOMALY_REASONS, NEW_REASON))})$"

    class LaterScores(Scores):
        reason = dy.String(regex=with_new_reason, nullable=True)
        confidence = dy.Float32(nullable=True)

    class LaterAnomalies(Anomalies):
        reason = dy.String(regex=with_new_reason)

    class LaterEpisodes(Episodes):
        reason = dy.String(regex=with_new_reason)

    build_score_rows = ml.scoring.tables._build_score_rows
    explain_anomalies = ml.scoring.tables.explain_anomalies
    monkeypatch.setattr(ml.scoring.tables, "Scores", LaterScores)
    monkeypatch.setattr(ml.scoring.tables, "Anomalies", LaterAnomalies)
    monkeypatch.setattr("ml.episodes.Episodes", LaterEpisodes)
    monkeypatch.setattr(
        ml.scoring.tables,
        "_build_score_rows",
        lambda span: build_score_rows(span).with_columns(confidence=pl.lit(0.5)),
    )
    monkeypatch.setattr(
        ml.scoring.tables,
        "explain_anomalies",
        lambda *args, **options: explain_anomalies(*args, **options).with_columns(
            reason=pl.lit(NEW_REASON)
        ),
    )
    later = {"scores": LaterScores, "anomalies": LaterAnomalies, "episodes": LaterEpisodes}
    for table, schema in later.items():
        monkeypatch.setitem(storage.TABLE_SCHEMAS, table, schema)


def test_artefact_that_lacks_numbers_takes_those_of_the_first_release(
    first_release_home: Path,
) -> None:
    detector = load_detector(first_release_home / "models/2")
    assert detector.config.scoring == type(detector.config.scoring)()
    assert detector.calibration.n_reference_scores > 600


def test_nights_table_keeps_its_columns() -> None:
    assert set(FORMER_COLUMN_NAMES["nights"]) <= set(Nights.column_names())

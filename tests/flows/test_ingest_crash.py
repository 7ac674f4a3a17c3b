"""An ingest that is killed anywhere, run again, ends where an undisturbed one ends."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest

from tasks import storage
from tests.deliveries import build_rows, hash_files, ingest_sources, write_csv

ROOT = Path(__file__).parents[2]
# The steps of the flow without Prefect's seconds of import; if asked, the nth rename kills.
CHILD = """
import os, signal, sys
from pathlib import Path
from tasks import storage
from tasks.ingest.discovery import discover_tables
from tasks.ingest.staging import group_tables, merge_months, plan_months, stage_tables
from tasks.ingest.commit import commit_ingest

source, fatal = sys.argv[1], int(sys.argv[2])
rename, renames = Path.replace, 0

def counted(path, target):
    global renames
    renames += 1
    if renames == fatal:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(path, target)

Path.replace = counted
print("ready", flush=True)
with storage.hold_write_lock():
    discovered = discover_tables([source], {})
    groups = group_tables(discovered.reading_tables)
    staged = [each for group in groups for each in stage_tables(group)]
    commit_ingest(discovered, staged, merge_months(plan_months(staged)))
print(renames, flush=True)
"""


@pytest.fixture(scope="module")
def deliveries(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An earlier delivery, and a later one that changes, adds and repeats readings."""
    path = tmp_path_factory.mktemp("deliveries")
    slots = range(0, 6_000)
    write_csv(path / "1/a.csv", build_rows({slot: slot % 9 / 10 for slot in slots}))
    write_csv(path / "2/b.csv", build_rows({slot: slot % 10 / 10 for slot in slots}))
    for name in ("c", "d", "e"):
        write_csv(
            path / f"2/{name}.csv",
            build_rows(dict.fromkeys(slots, 0.5) | {9: "Null"}, f"MAC-{name}"),
        )
    write_csv(path / "2/w.csv", ["2013-06-03,1,0.5"], "time,temperature,humidity")
    return path / "1", path / "2"


@contextmanager
def _child(home: Path, source: Path, fatal: int = 0) -> Iterator[subprocess.Popen[str]]:
    env = os.environ | {"METERWATCH_HOME": str(home), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CHILD, str(source), str(fatal)]
    with subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        yield child


def _end_state(home: Path) -> tuple[dict[str, str], list[tuple[object, ...]], list[object]]:
    entries = storage.read_table("deliveries").drop("ingested_at_utc").sort("delivery")
    quarantine = storage.read_table("quarantine").sort(pl.all())
    kept = {
        name: digest
        for name, digest in hash_files(home, "lake").items()
        if "/deliveries/" not in name
    }
    return kept, entries.rows(), quarantine.rows()


def test_ingest_killed_at_any_moment_and_rerun_gives_the_same_lake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deliveries: tuple[Path, Path]
) -> None:
    first, second = deliveries
    monkeypatch.setenv("METERWATCH_HOME", str(tmp_path / "undisturbed"))
    ingest_sources(first)
    began = time.monotonic()
    with _child(tmp_path / "undisturbed", second) as child:
        began = time.monotonic()
        assert child.stdout is not None
        renames = int(child.stdout.readline())
    seconds = time.monotonic() - began
    expected = _end_state(tmp_path / "undisturbed")
    assert [row for row in expected[2] if row[3] == "superseded"]

    draw = random.Random(7)
    # Half the kills fall on a rename (of a prepared file, or while publishing), half on any moment.
    fatal = draw.sample(range(1, renames + 1), 3)
    waits = [draw.uniform(0, seconds) for _ in range(2)]
    for i, (kill_at, wait) in enumerate([*((at, None) for at in fatal), *((0, s) for s in waits)]):
        home = tmp_path / f"killed{i}"
        monkeypatch.setenv("METERWATCH_HOME", str(home))
        ingest_sources(first)
        with _child(home, second, kill_at) as child:
            if wait is not None:
                time.sleep(wait)
                child.send_signal(signal.SIGKILL)
        assert wait is not None or child.returncode == -signal.SIGKILL
        ingest_sources(second)
        assert _end_state(home) == expected
        assert not (home / "staging").exists()

"""Delivered tables are staged in groups, and merged month by month over the lake."""

import inspect
import pickle
from datetime import date
from pathlib import Path

import pytest

from tasks import paths, storage
from tasks.ingest.delivered_files import DeliveredTable, list_tables
from tasks.ingest.staging import (
    RankedTable,
    StagedTable,
    group_tables,
    merge_month,
    merge_months,
    plan_months,
    stage_tables,
)
from tests.deliveries import build_rows, ingest_sources, write_csv

pytestmark = pytest.mark.usefixtures("home")
HALF_HOURS_OF_A_DAY = 48
JULY, AUGUST, SEPTEMBER = (date(2013, month, 1) for month in (7, 8, 9))


def stage(*files: Path) -> list[StagedTable]:
    """Stage files, in this order, in one group."""
    tables = [table for file in files for table in list_tables(file, file.name)]
    (group,) = group_tables(tables)
    return stage_tables(group)


def days(n_days: int) -> int:
    """The half-hour in which so many days after START begin."""
    return n_days * HALF_HOURS_OF_A_DAY


@pytest.mark.parametrize(("n_tables", "n_groups", "size"), [(1, 1, 1), (9, 2, 8), (2_000, 200, 10)])
def test_group_tables_makes_few_groups_in_the_order_of_delivery(
    n_tables: int, n_groups: int, size: int
) -> None:
    tables = [DeliveredTable(Path(f"{i}.csv"), f"{i}.csv", "plain") for i in range(n_tables)]
    groups = group_tables(tables)
    assert len(groups) == n_groups
    assert max(map(len, groups)) == size
    expected = [RankedTable(rank, table) for rank, table in enumerate(tables)]
    assert [each for group in groups for each in group] == expected


def test_copy_of_a_file_is_already_ingested_in_any_group(tmp_path: Path) -> None:
    rows = build_rows({0: 0.5})
    first = write_csv(tmp_path / "a.csv", rows)
    copy = write_csv(tmp_path / "b.csv", rows)
    with storage.hold_write_lock():
        staged = stage(first, copy)
        tables = [DeliveredTable(first, "a.csv", "plain"), DeliveredTable(copy, "b.csv", "plain")]
        later_group = stage_tables([RankedTable(7, tables[1])])
    assert [each.is_new for each in staged] == [True, False]
    assert [each.is_already_ingested for each in staged + later_group] == [False, True, True]


def test_staging_again_is_the_same(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "a.csv", build_rows({0: 0.5, 1: "Null"}))
    with storage.hold_write_lock():
        assert stage(file) == stage(file)


def test_unreadable_table_leaves_nothing_staged(tmp_path: Path) -> None:
    broken = write_csv(tmp_path / "a.csv", [*build_rows({0: 0.5}), "MAC000001,2013-06-03,1,1"])
    with storage.hold_write_lock():
        (staged,) = stage(broken)
        assert staged.failure is not None
        assert staged.failure.startswith("a.csv: line 3 has 4 fields")
        assert [path for path in paths.staging_dir().rglob("*") if path.is_file()] == []


def test_plan_months_reaches_from_the_first_to_the_last_delivered_month(tmp_path: Path) -> None:
    lake = {days(n): 0.1 for n in (0, 60, 70, 100)}  # June, two of August, September
    ingest_sources(write_csv(tmp_path / "lake.csv", build_rows(lake)))
    delivered = {days(30): 0.1, days(95): 0.1}  # July, September
    file = write_csv(tmp_path / "new.csv", build_rows(delivered))
    with storage.hold_write_lock():
        assert plan_months(stage(file)) == [JULY, AUGUST, SEPTEMBER]


def test_plan_months_of_nothing_valid_is_empty(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "a.csv", build_rows({0: "Null"}))
    with storage.hold_write_lock():
        assert plan_months(stage(file)) == []


def test_merge_month_prepares_a_month_only_where_it_changes(tmp_path: Path) -> None:
    ingest_sources(write_csv(tmp_path / "lake.csv", build_rows({0: 0.1, days(30): 0.2})))
    delivered = {0: 0.1, days(30): 0.3, days(31): 0.4}
    file = write_csv(tmp_path / "new.csv", build_rows(delivered))
    with storage.hold_write_lock():
        june, july = merge_months(plan_months(stage(file)))
        prepared = [path.name for path in paths.prepared_dir().glob("lake/days/*")]
    assert (june.is_changed, june.n_readings_in_spans, june.n_repeated_by_rank) == (
        False,
        1,
        {0: 1},
    )
    assert (july.is_changed, july.n_readings_in_spans, july.n_repeated_by_rank) == (True, 2, {0: 0})
    assert prepared == ["month=2013-07"]


@pytest.mark.parametrize("task", [stage_tables, merge_month])
def test_arguments_of_tasks_can_be_sent_to_another_process(task: object) -> None:
    group = group_tables([DeliveredTable(Path("a.csv"), "a.csv", "plain")])[0]
    arguments = {"group": group, "month": JULY}
    names = list(inspect.signature(task).parameters)  # type: ignore[arg-type]
    sent = [arguments[name] for name in names]
    assert pickle.loads(pickle.dumps(sent)) == sent

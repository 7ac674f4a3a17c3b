"""What a run's page says: rows, households by status, the most urgent, checks."""

from datetime import date

import polars as pl
import pytest

from ml.schemas import Nights, Scores
from tasks import reports

NIGHT = date(2014, 2, 2)


def build_scores(n_flagged: int, n_normal: int) -> pl.DataFrame:
    order = pl.int_range(1, pl.len() + 1, dtype=pl.Int32)
    return Scores.sample(n_flagged + n_normal).with_columns(
        night=pl.lit(NIGHT),
        rank=order,
        is_anomaly=order <= n_flagged,
        household_id=pl.format("H{}", order),
    )


def test_quarantined_rows_are_listed_by_rule_most_frequent_first() -> None:
    said = reports.render_row_counts(
        rows_in=1_010, rows_kept=1_000, quarantined_by_rule={"null": 3, "duplicate": 7}
    )
    assert "1,010 rows delivered, 1,000 kept, 10 quarantined." in said
    assert said.index("| duplicate | 7 |") < said.index("| null | 3 |")


def test_no_quarantined_rows_render_no_table() -> None:
    assert "|" not in reports.render_row_counts(rows_in=5, rows_kept=5, quarantined_by_rule={})


def test_household_nights_are_counted_by_status() -> None:
    said = reports.render_status_counts({"scored": 5_500, "missing": 67})
    assert "| scored | 5,500 |" in said
    assert "| missing | 67 |" in said


@pytest.mark.parametrize(("flagged", "shown"), [(3, 3), (12, 10)])
def test_at_most_ten_urgent_households_are_listed_by_rank(flagged: int, shown: int) -> None:
    rows = reports.render_most_urgent(build_scores(flagged, n_normal=5), NIGHT).splitlines()
    assert [row.split(" | ")[1] for row in rows if row.startswith("| ")][2:] == [
        f"H{rank}" for rank in range(1, shown + 1)
    ]


def test_night_without_flags_is_stated() -> None:
    assert f"No household was flagged on {NIGHT}." in reports.render_most_urgent(
        build_scores(0, 4), NIGHT
    )


def test_only_failing_checks_are_listed() -> None:
    said = reports.render_checks({"scored_nights_contiguous": 0, "rows_add_up": 1_200})
    assert "1 of 2 checks passed." in said
    assert "| rows_add_up | 1,200 |" in said
    assert "scored_nights_contiguous" not in said


def test_alerts_are_reported_against_the_alert_budget() -> None:
    night = (NIGHT, 5_000, 40, 20, 4.0, 3.0, 0.25, 1.5, 1.0, 6_000, "1")
    said = reports.render_alerts(pl.DataFrame([night], schema=Nights.column_names(), orient="row"))
    assert f"40 of 5,000 scored households are flagged on {NIGHT}" in said
    assert "20 episodes opened, 4.00 in 1,000 (budget of false ones: 3)" in said
    assert "moved by +0.25 together" in said
    assert "1.50 times as many" in said

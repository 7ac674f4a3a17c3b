"""Delivered rows are validated rule by rule, and valid readings laid out as household-nights."""

from datetime import date, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from ml.ingest import validation
from ml.ingest.validation import (
    HALF_HOUR_US,
    RowRule,
    ValidatedRows,
    build_household_nights,
    build_row_rules,
    collect_household_attributes,
    find_reading_spans,
    merge_reading_spans,
    validate_rows,
)
from ml.schemas import QUARANTINE_RULES

SUPPLY_LIMIT_KWH = 12.0
MIDNIGHT = datetime(2013, 6, 3)
DeliveredRow = tuple[str | None, str | None, str | None]


def at(slot: float) -> str:
    """The stamp of the half-hour `slot` after MIDNIGHT."""
    return f"{MIDNIGHT + timedelta(minutes=30 * slot):%Y-%m-%d %H:%M:%S}"


def validate(rows: list[DeliveredRow], **columns: list[str]) -> ValidatedRows:
    """Validate rows of household, stamp and value, all text."""
    frame = pl.DataFrame(
        rows, schema=dict.fromkeys(("household_id", "timestamp", "value"), pl.String), orient="row"
    ).with_columns(pl.Series(name, values) for name, values in columns.items())
    kwh = pl.col("value").str.strip_chars().cast(pl.Float64, strict=False)
    return validate_rows(frame.with_columns(kwh=kwh), SUPPLY_LIMIT_KWH)


BROKEN: list[tuple[str, DeliveredRow]] = [
    ("null", ("A", at(0), " Null ")),
    ("null", ("A", at(0), "")),
    ("not_a_number", ("A", at(0), "1,5")),
    ("not_a_number", ("A", at(0), "inf")),
    ("sentinel", ("A", at(0), "2147483.647")),
    ("bad_timestamp", ("A", "1999-12-31 23:30:00", "1")),
    ("bad_timestamp", ("A", None, "1")),
    ("off_grid", ("A", at(0.5), "1")),
    ("negative", ("A", at(0), "-0.001")),
    ("above_limit", ("A", at(0), "12.001")),
    ("no_household", (" ", at(0), "1")),
    ("no_household", (None, at(0), "1")),
]


@pytest.mark.parametrize(("rule", "row"), BROKEN)
def test_validate_rows_quarantines_a_row_under_the_rule_it_breaks(
    rule: str, row: DeliveredRow
) -> None:
    validated = validate([("A", at(1), "0.5"), row])
    assert validated.is_valid.tolist() == [True, False]
    assert validated.quarantined_rows.get_column("rule").to_list() == [rule]
    assert validated.kwh.tolist() == [0.5]


def test_build_row_rules_has_one_rule_of_each_name_in_the_order_of_the_schema() -> None:
    names = [rule.name for rule in build_row_rules(SUPPLY_LIMIT_KWH)]
    assert (*names, "duplicate", "superseded") == QUARANTINE_RULES


def test_validate_rows_reports_the_first_rule_that_is_broken() -> None:
    validated = validate([(None, at(0.5), "-1"), (None, at(0), "-1"), (None, at(0), "1")])
    rules = validated.quarantined_rows.get_column("rule").to_list()
    assert rules == ["off_grid", "negative", "no_household"]


def test_validate_rows_keeps_padded_cells_limits_and_zeros() -> None:
    rows: list[DeliveredRow] = [
        (" A ", f" {at(0)} ", " 12 "),
        ("A", at(1), "-0"),
        ("A", at(2), "0"),
    ]
    validated = validate(rows)
    assert validated.kwh.tolist() == [12, 0, 0]
    assert validated.household_ids.to_list() == ["A"]
    assert validated.quarantined_rows.is_empty()


def test_validate_rows_quarantines_the_value_as_delivered() -> None:
    (row,) = validate([(" A ", at(0), " -0.50 ")]).quarantined_rows.rows()
    assert row == ("A", MIDNIGHT, "-0.50", "negative")


def test_a_rule_added_once_runs_on_plain_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def build_more_rules(supply_limit_kwh: float) -> list[RowRule]:
        return [*build_row_rules(supply_limit_kwh), RowRule("sentinel", pl.col("kwh") == 0.5)]

    monkeypatch.setattr(validation, "build_row_rules", build_more_rules)
    validated = validate([("A", at(0), "0.25"), ("A", at(1), "0.5")])
    assert validated.kwh.tolist() == [0.25]
    assert validated.quarantined_rows.get_column("rule").to_list() == ["sentinel"]


@pytest.mark.parametrize("rule", build_row_rules(SUPPLY_LIMIT_KWH), ids=lambda rule: rule.name)
def test_fast_check_of_a_rule_passes_no_row_that_breaks_it(rule: RowRule) -> None:
    texts = ["Null", "", "x", "nan", "inf", "-1", "-0", "0", "12", "12.1", "99", "2147483.647"]
    texts += ["2147483.4", "2147483.9", "4294967.295", "2147483647", "4294967295"]
    stamps = [at(0), at(0.5), "1999-12-31 23:30:00", "2100-01-01 00:00:00", None]
    rows: list[DeliveredRow] = [
        (household, stamp, text) for household in ("A", " ") for stamp in stamps for text in texts
    ]
    tested = validate(rows).rows.select(
        is_broken=rule.is_broken.fill_null(value=False),
        passes=rule.passes_fast_check.fill_null(value=False),
    )
    assert tested.get_column("is_broken").any()
    assert tested.filter("is_broken", "passes").is_empty()


def test_take_delivered_rows_skips_invalid_rows() -> None:
    validated = validate([("A", at(i), "x" if i in (0, 2, 3, 7) else str(i)) for i in range(9)])
    taken = validated.take_delivered_rows(np.array([0, 1, 3, 4]))
    assert taken.get_column("value").to_list() == ["1", "4", "6", "8"]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
@pytest.mark.parametrize("max_empty", [1_000_000, -1])
def test_build_household_nights_keeps_the_largest_reading_of_a_half_hour(
    order: tuple[int, ...], max_empty: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "MAX_EMPTY_HOUSEHOLD_NIGHTS", max_empty)
    rows: list[DeliveredRow] = [
        ("A", at(1), "0.5"),
        ("A", at(1), "0.75"),
        ("A", at(1), "0.25"),
        ("B", at(48 * 40), "-0"),
    ]
    household_nights, collisions = build_household_nights(validate([rows[i] for i in order]))
    assert household_nights.select("month", "night", "household_id").rows() == [
        (date(2013, 6, 1), date(2013, 6, 3), "A"),
        (date(2013, 7, 1), date(2013, 7, 13), "B"),
    ]
    kwh = household_nights.get_column("kwh").to_numpy()
    assert np.argwhere(~np.isnan(kwh)).tolist() == [[0, 1], [1, 0]]
    assert kwh[0, 1] == 0.75
    assert kwh[1, 0] == 0
    assert not np.signbit(kwh[1, 0])
    later = MIDNIGHT + timedelta(minutes=30)
    assert sorted(collisions.drop("month").rows()) == [
        ("A", later, "0.25", 0.25),
        ("A", later, "0.5", 0.5),
    ]


@pytest.mark.parametrize(
    ("cells", "colliding"),
    [([0, 1, 5], []), ([0, 1, 1, 1, 5], [1, 2, 3]), ([5, 1, 0, 1, 5, 2], [0, 1, 3, 4])],
)
def test_find_colliding_rows_names_every_row_of_a_shared_cell(
    cells: list[int], colliding: list[int]
) -> None:
    assert validation._find_colliding_rows(np.array(cells), 6).tolist() == colliding


def test_encode_households_strips_padding_and_marks_missing_ones() -> None:
    names, codes = validation._encode_households(pl.Series(["B", " A", None, " ", "A ", "B"]))
    assert names.to_list() == ["A", "B"]
    assert codes.tolist() == [1, 0, -1, -1, 0, 1]


def test_reading_spans_reach_from_the_first_to_the_last_reading() -> None:
    rows = [("A", at(5), "1"), ("A", at(50), "1"), ("B", at(7), "1"), ("A", at(3), "Null")]
    household_nights, _ = build_household_nights(validate(rows))
    spans = find_reading_spans(household_nights)
    half_hour = timedelta(microseconds=HALF_HOUR_US)
    assert spans.rows() == [
        ("A", MIDNIGHT + 5 * half_hour, MIDNIGHT + 50 * half_hour),
        ("B", MIDNIGHT + 7 * half_hour, MIDNIGHT + 7 * half_hour),
    ]
    later = pl.DataFrame([("B", MIDNIGHT, MIDNIGHT)], schema=spans.schema, orient="row")
    assert merge_reading_spans([spans, later]).row(1) == (
        "B",
        MIDNIGHT,
        MIDNIGHT + 7 * half_hour,
    )


def test_household_attributes_are_stripped_and_come_from_valid_rows_alone() -> None:
    rows = [("A", at(0), "Null"), ("A", at(1), "1"), ("B", at(0), "1"), ("A", at(2), "1")]
    validated = validate(rows, tariff=["Wrong", " Std ", " ", "ToU"])
    attributes = collect_household_attributes(validated, ["tariff"])
    assert attributes.rows() == [("A", "ToU"), ("B", None)]

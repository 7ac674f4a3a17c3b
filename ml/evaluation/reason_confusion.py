"""Reasons given to flagged nights against the kinds that were injected."""

from typing import Final

import numpy as np
import polars as pl

from ml.arrays import BoolArray, FloatArray
from ml.evaluation.inject import KIND_NAMES, GroundTruth
from ml.explain.reasons import classify_reasons, select_context_nights
from ml.fleet import Fleet
from ml.schemas import ANOMALY_REASONS

NO_INJECTION: Final = "nothing injected"
"""The kind of a night that was found and into which nothing was injected."""
CORRECT_REASONS: Final[dict[str, tuple[str, ...]]] = {
    "scale_down": ("drop",),
    "half_hour_scale": ("drop", "unusual_shape"),
    "zero_window": ("outage",),
    "random_share": ("drop", "unusual_shape"),
    "constant_mean": ("stuck",),
    "reversed_day": ("shifted", "unusual_shape"),
    "stuck": ("stuck",),
    "near_zero": ("drop", "outage"),
    "outage_catch_up": ("outage",),
    "spike": ("spike",),
    "added_baseload": ("rise",),
    "night_load": ("night_load", "rise"),
    "clock_shift": ("shifted", "unusual_shape"),
    "doubled": ("rise",),
    "cap": ("drop",),
    "ramp": ("rise",),
    "tenancy": ("unusual_shape", "rise", "drop"),
}
"""The reasons that are right for a kind; the first says it best. Judged by what a kind does to the
readings, before any detector was measured by it."""


def count_reasons_by_kind(
    is_found: BoolArray, truth: GroundTruth, injected_fleet: Fleet, expected_kwh: FloatArray
) -> pl.DataFrame:
    """Count the tested nights that were found, `[R, D]`: `kind`, `reason`, `nights`.

    `expected_kwh` `[R, D, 48]` is what the detector expected. Pairs without a night have no row.
    """
    row, night = np.nonzero(is_found & truth.is_tested)
    kind = np.array([NO_INJECTION, *KIND_NAMES])[truth.kind_code[row, night]]
    context_kwh = select_context_nights(injected_fleet.kwh, row, night)
    reason = classify_reasons(injected_fleet.kwh[row, night], expected_kwh[row, night], context_kwh)
    pairs = pl.DataFrame({"kind": kind, "reason": reason}, {"kind": pl.String, "reason": pl.String})
    return pairs.group_by("kind", "reason").agg(nights=pl.len().cast(pl.Int64))


def tabulate_reasons(reason_counts: pl.DataFrame) -> pl.DataFrame:
    """Return a row a kind, `NO_INJECTION` last: a count of each reason, and the share `right`."""
    kinds = pl.DataFrame({"kind": [*KIND_NAMES, NO_INJECTION]})
    by_reason = [pl.col("nights").filter(reason=name).sum().alias(name) for name in ANOMALY_REASONS]
    counts = (
        _grade_reasons(reason_counts)
        .group_by("kind")
        .agg(*by_reason, _share_of_nights("is_right").alias("right"))
    )
    joined = kinds.join(counts, on="kind", how="left", maintain_order="left")
    return joined.with_columns(pl.col(ANOMALY_REASONS).fill_null(0))


def describe_reason_accuracy(reason_counts: pl.DataFrame) -> str:
    """Return in words which share of the injected nights found has a right, and the best reason."""
    injected = _grade_reasons(reason_counts).filter(pl.col("kind") != NO_INJECTION)
    right, best = injected.select(_share_of_nights("is_right"), _share_of_nights("is_best")).row(0)
    if right is None:
        return "no injected night was found"
    nights = injected["nights"].sum()
    return f"{right:.1%} of {nights:,} nights found are named rightly, {best:.1%} best"


def _grade_reasons(reason_counts: pl.DataFrame) -> pl.DataFrame:
    """Add `is_right` and `is_best` to each pair; null where nothing was injected."""
    right_pairs = [
        (kind, reason, reason == reasons[0])
        for kind, reasons in CORRECT_REASONS.items()
        for reason in reasons
    ]
    grades = pl.DataFrame(right_pairs, ["kind", "reason", "is_best"], orient="row")
    if_injected = pl.when(pl.col("kind") != NO_INJECTION)
    return reason_counts.join(grades, on=["kind", "reason"], how="left").with_columns(
        is_right=if_injected.then(pl.col("is_best").is_not_null()),
        is_best=if_injected.then(pl.col("is_best").fill_null(value=False)),
    )


def _share_of_nights(flag_column: str) -> pl.Expr:
    """Return the share of nights with this flag of those where it is not null; null without any."""
    true = pl.col("nights").filter(pl.col(flag_column)).sum()
    total = pl.col("nights").filter(pl.col(flag_column).is_not_null()).sum()
    return pl.when(total > 0).then(true / total).alias(flag_column)

"""How many of the anomalies that a simulation planted were flagged."""

from dataclasses import dataclass

import polars as pl


@dataclass(frozen=True)
class DetectionSummary:
    """What flagging found of what was planted, on the nights that were scored."""

    counts_by_kind: pl.DataFrame
    """One row a kind and one for all: homes planted and found, household-nights likewise."""
    n_flagged: int
    n_false_alarms: int
    n_normal_nights: int
    """Household-nights with a score on which nothing was planted."""

    @property
    def precision(self) -> float:
        """The share of flagged household-nights on which something was planted."""
        return 1 - self.n_false_alarms / self.n_flagged if self.n_flagged else float("nan")

    @property
    def false_alarms_per_1000(self) -> float:
        """False alarms per 1,000 normal household-nights, as the alert budget counts them."""
        return (
            1000 * self.n_false_alarms / self.n_normal_nights
            if self.n_normal_nights
            else float("nan")
        )


def summarize_detection(scores: pl.DataFrame, truth: pl.DataFrame) -> DetectionSummary:
    """Compare the flags of `scores` (Scores) with what was planted (Truth)."""
    known = scores.join(truth, on=["household_id", "night"], how="left")
    planted, normal = pl.col("kind").is_not_null(), pl.col("kind").is_null()
    kinds = known.filter(planted).with_columns(kind=pl.col("kind").cast(pl.String))
    each = _count_by_kind(kinds).sort("kind")
    every = _count_by_kind(kinds.with_columns(kind=pl.lit("all")))
    return DetectionSummary(
        counts_by_kind=pl.concat([each, every]),
        n_flagged=known.filter("is_anomaly").height,
        n_false_alarms=known.filter("is_anomaly", normal).height,
        n_normal_nights=known.filter(pl.col("score").is_not_null(), normal).height,
    )


def _count_by_kind(injected_nights: pl.DataFrame) -> pl.DataFrame:
    home = pl.col("household_id")
    return (
        injected_nights.group_by("kind")
        .agg(
            households=home.n_unique(),
            households_found=home.filter("is_anomaly").n_unique(),
            nights=pl.len(),
            nights_found=pl.col("is_anomaly").sum(),
        )
        .with_columns(recall=pl.col("nights_found") / pl.col("nights"))
    )

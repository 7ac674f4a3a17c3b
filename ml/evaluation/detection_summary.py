"""Flags against the anomalies of a simulated fleet: found, missed, false alarms."""

from dataclasses import dataclass

import polars as pl


@dataclass(frozen=True)
class DetectionSummary:
    """What was flagged of what was injected, on the nights that were scored."""

    counts_by_kind: pl.DataFrame
    """One row a kind and one for all: `kind`, `households`, `households_found`, `nights`,
    `nights_found`, `recall` (of nights)."""
    n_flagged: int
    n_false_alarms: int
    n_normal_nights: int
    """Household-nights with a score on which nothing was injected."""

    @property
    def precision(self) -> float:
        """The share of flagged nights on which something was injected; NaN without flags."""
        return 1 - self.n_false_alarms / self.n_flagged if self.n_flagged else float("nan")

    @property
    def false_alarms_per_1000(self) -> float:
        """Flagged nights per 1,000 normal household-nights; NaN without any.

        The alert budget counts episodes instead, so this may lie above it.
        """
        return (
            1000 * self.n_false_alarms / self.n_normal_nights
            if self.n_normal_nights
            else float("nan")
        )


def summarize_detection(scores: pl.DataFrame, truth: pl.DataFrame) -> DetectionSummary:
    """Compare the flags of the table `scores` with the truth of a simulation.

    `scores` has `household_id, night, score, is_anomaly`; `truth` is `InjectedAnomalies`. Injected
    nights that `scores` does not hold are left out.
    """
    joined = scores.join(truth, on=["household_id", "night"], how="left")
    is_injected = pl.col("kind").is_not_null()
    is_normal = pl.col("kind").is_null()
    injected = joined.filter(is_injected).with_columns(kind=pl.col("kind").cast(pl.String))
    by_kind = _count_by_kind(injected).sort("kind")
    of_all = _count_by_kind(injected.with_columns(kind=pl.lit("all")))
    return DetectionSummary(
        counts_by_kind=pl.concat([by_kind, of_all]),
        n_flagged=joined.filter("is_anomaly").height,
        n_false_alarms=joined.filter("is_anomaly", is_normal).height,
        n_normal_nights=joined.filter(pl.col("score").is_not_null(), is_normal).height,
    )


def _count_by_kind(injected_nights: pl.DataFrame) -> pl.DataFrame:
    household = pl.col("household_id")
    return (
        injected_nights.group_by("kind")
        .agg(
            households=household.n_unique(),
            households_found=household.filter("is_anomaly").n_unique(),
            nights=pl.len(),
            nights_found=pl.col("is_anomaly").sum(),
        )
        .with_columns(recall=pl.col("nights_found") / pl.col("nights"))
    )

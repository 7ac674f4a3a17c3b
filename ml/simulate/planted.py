"""How many of the anomalies that a simulation planted were flagged."""

from dataclasses import dataclass

import polars as pl


@dataclass(frozen=True)
class Found:
    """What flagging found of what was planted, on the nights that were scored."""

    by_kind: pl.DataFrame
    """One row a kind and one for all: homes planted and found, household-nights likewise."""
    flagged: int
    false_alarms: int
    normal: int
    """Household-nights with a score on which nothing was planted."""

    @property
    def precision(self) -> float:
        """The share of flagged household-nights on which something was planted."""
        return 1 - self.false_alarms / self.flagged if self.flagged else float("nan")

    @property
    def false_alarms_per_1000(self) -> float:
        """False alarms per 1,000 normal household-nights, as the alert budget counts them."""
        return 1000 * self.false_alarms / self.normal if self.normal else float("nan")


def found(scores: pl.DataFrame, truth: pl.DataFrame) -> Found:
    """Compare the flags of `scores` (Scores) with what was planted (Truth)."""
    known = scores.join(truth, on=["household_id", "night"], how="left")
    planted, normal = pl.col("kind").is_not_null(), pl.col("kind").is_null()
    kinds = known.filter(planted).with_columns(kind=pl.col("kind").cast(pl.String))
    each = _counted(kinds).sort("kind")
    every = _counted(kinds.with_columns(kind=pl.lit("all")))
    return Found(
        by_kind=pl.concat([each, every]),
        flagged=known.filter("is_anomaly").height,
        false_alarms=known.filter("is_anomaly", normal).height,
        normal=known.filter(pl.col("score").is_not_null(), normal).height,
    )


def _counted(kinds: pl.DataFrame) -> pl.DataFrame:
    home = pl.col("household_id")
    return (
        kinds.group_by("kind")
        .agg(
            homes=home.n_unique(),
            homes_found=home.filter("is_anomaly").n_unique(),
            nights=pl.len(),
            nights_found=pl.col("is_anomaly").sum(),
        )
        .with_columns(found=pl.col("nights_found") / pl.col("nights"))
    )

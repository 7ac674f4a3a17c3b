"""The promotion of a version: it must find more injected anomalies than the champion."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ml.evaluation.inject import GroundTruth, inject_anomalies, repeat_households
from ml.evaluation.metrics import estimate_superiority
from ml.fleet import Fleet
from ml.scoring.detector import Detector
from ml.scoring.tables import score_fleet


class PromotionConfig(BaseModel):
    """The numbers that decide whether a version replaces the champion."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_superiority: float = Field(
        0.95,
        gt=0.5,
        lt=1,
        description="share of bootstrap resamples of the households in which the version must rank "
        "better. Chosen: the customary 95 %; a version that is as good as the champion replaces it "
        "once in 20 times",
    )
    n_rows: int = Field(
        136,
        ge=1,
        description="household copies to inject anomalies into, at least. Chosen: eight for each "
        "of the 17 kinds of injected anomaly",
    )
    seed: int = Field(0, ge=0, description="of what is injected: the same for both detectors")


DEFAULT_PROMOTION_CONFIG: Final = PromotionConfig()


class PromotionDecision(BaseModel):
    """Whether a version became the champion, and why."""

    is_promoted: bool
    champion_version: str | None
    """The champion that it was compared with, None if there was none."""
    superiority: float | None
    """Share of bootstrap resamples of the households in which it ranks better than the champion."""
    why: str


@dataclass(frozen=True)
class PromotionTrial:
    """Held-out households with injected anomalies, on which two detectors are compared."""

    fleet: Fleet
    truth: GroundTruth
    min_readings: int


def build_promotion_trial(
    held_out_fleet: Fleet,
    nights: slice,
    min_readings: int,
    config: PromotionConfig = DEFAULT_PROMOTION_CONFIG,
) -> PromotionTrial:
    """Return copies of households with anomalies injected into `nights`.

    The households must be new to both detectors; the nights before are their context.
    """
    households = np.arange(len(held_out_fleet.household_ids))[: config.n_rows]
    n_copies = -(-config.n_rows // len(households))
    fleet, truth = inject_anomalies(
        held_out_fleet,
        repeat_households(households, n_copies),
        nights,
        seed=config.seed,
        min_readings=min_readings,
    )
    return PromotionTrial(fleet, truth, min_readings)


def compare_detectors(detector: Detector, champion: Detector, trial: PromotionTrial) -> float:
    """Return the share of resamples in which a detector ranks better than the champion.

    By the average precision of the score over a paired bootstrap of the households; ties count
    half.
    """
    score = score_fleet(detector, trial.fleet, trial.min_readings).score
    champion_score = score_fleet(champion, trial.fleet, trial.min_readings).score
    return estimate_superiority(score, champion_score, trial.truth)


def decide_promotion(
    superiority: float | None,
    champion_version: str | None,
    *,
    is_requested: bool,
    champion_refusal: str | None = None,
    config: PromotionConfig = DEFAULT_PROMOTION_CONFIG,
) -> PromotionDecision:
    """Return whether a version becomes the champion, and why.

    `superiority` as of `compare_detectors`, None if there is no champion to compare with: then any
    version is better. `champion_refusal` says why this release cannot score with the champion.
    None is promoted unless promotion `is_requested`.
    """
    if champion_refusal is not None:
        is_better = True
        why = f"the champion cannot score any more, {champion_refusal}"
    elif superiority is None:
        is_better = True
        why = "there was no champion"
    else:
        is_better = superiority >= config.min_superiority
        why = (
            f"it ranks injected nights better than the champion in {superiority:.0%} of resamples, "
            f"{config.min_superiority:.0%} are needed"
        )
    if not is_requested:
        why = f"promotion was not asked for; {why}"
    return PromotionDecision(
        is_promoted=is_requested and is_better,
        champion_version=champion_version,
        superiority=superiority,
        why=why,
    )

"""From a fleet and a detector to scores: how far, how rare, how lasting.

A night's figures depend on that night and the `LEAD_NIGHTS` before it alone. What the detector
makes of a household is compared with what it made of the same household on the nights before,
on both sides: a reconstruction error that is unusually small is as suspicious as a large one.
"""

import copy
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from scipy.stats import norm

from ml.detector import Detector
from ml.features import LEVEL_NIGHTS, Fleet, Floats, median_and_mad, trailing
from ml.models.network import Windows
from ml.reasons import explain
from ml.schemas import HALF_HOURS, Anomalies, Scores
from ml.windows import FleetWindows

ERROR_NIGHTS: Final = 28
EVIDENCE_NIGHTS: Final = 14
LEAD_NIGHTS: Final = LEVEL_NIGHTS + ERROR_NIGHTS + EVIDENCE_NIGHTS
WARM_NIGHTS: Final = 28
PEER_WEIGHT: Final = 4.0
EVIDENCE_DRIFT: Final = 0.5
MAX_SURPRISE: Final = 4.0
BLOCK: Final = 2048


@dataclass(frozen=True)
class Night:
    """Arrays over households and nights `[H, D]`, profiles `[H, D, 48]`."""

    expected_kwh: Floats
    residual: Floats
    """Deviation of each half-hour in units of its usual one, NaN where missing."""
    score: Floats
    """Two-sided distance of the household's error from its own usual one; NaN if not scored."""
    p_value: Floats
    evidence: Floats
    history: NDArray[np.int_]
    """Usable nights among the `LEVEL_NIGHTS + ERROR_NIGHTS` before."""


@dataclass(frozen=True)
class Rebuilt:
    """What the network makes of households and nights `[H, D]`, NaN for too few readings."""

    expected_kwh: NDArray[np.float32]
    """`[H, D, 48]`"""
    half_hour: NDArray[np.float32]
    """How far each half-hour deviates, `[H, D, 48]`, NaN where missing."""
    score: NDArray[np.float64]
    """The network's own score, not yet compared with anything."""


def reconstruct(detector: Detector, fleet: Fleet, nights: slice, min_readings: int) -> Rebuilt:
    """Show the network every household-night of these nights that has enough readings.

    In double precision, so that a result does not depend on which rows share a batch.
    """
    usable = fleet.n_readings >= min_readings
    chosen = np.zeros_like(usable)
    chosen[:, nights] = usable[:, nights]
    windows = FleetWindows(fleet, detector.network.lead_nights, min_readings)
    expected, half_hour = (np.full_like(fleet.kwh, np.nan) for _ in range(2))
    score = np.full(chosen.shape, np.nan)
    precise = copy.deepcopy(detector.network).double().eval()
    with torch.inference_mode():
        for places in np.array_split(np.flatnonzero(chosen), -(-chosen.sum() // BLOCK) or 1):
            rows = np.unravel_index(places, chosen.shape)
            batch = windows.take(torch.from_numpy(places))
            judged = precise(Windows(*(part.double() for part in batch)))
            expected[rows], half_hour[rows], score[rows] = (part.numpy() for part in judged)
    return Rebuilt(expected[:, nights], half_hour[:, nights], score[:, nights])


def two_sided(detector: Detector, errors: Floats) -> Floats:
    """Distance of each error from the household's own trailing median, in robust deviations.

    Few nights of history lean on the peers' centre and scale, by shrinkage.
    """
    windows = trailing(errors, ERROR_NIGHTS)
    count = np.isfinite(windows).sum(axis=-1)
    median, mad = median_and_mad(windows)
    weight = count / (count + PEER_WEIGHT)
    peer_center, peer_scale = float(detector.peer_center), float(detector.peer_scale)
    center = weight * np.nan_to_num(median) + (1 - weight) * peer_center
    variance = weight * (1.4826 * np.nan_to_num(mad)) ** 2 + (1 - weight) * peer_scale**2
    return np.abs(errors - center) / np.sqrt(variance)


def p_values(detector: Detector, scores: Floats) -> Floats:
    """Conformal p-values: how rare among the calibration's nights (Bates et al. 2023)."""
    calibration = detector.calibration.double().numpy()
    above = len(calibration) - np.searchsorted(calibration, scores, side="left")
    return np.where(np.isfinite(scores), (1 + above) / (1 + len(calibration)), np.nan)


def accumulate(p_value: Floats) -> Floats:
    """One-sided CUSUM of the nights' surprises (Page 1954), over the last `EVIDENCE_NIGHTS`.

    A night's surprise is the normal score of its p-value; a night without a score adds nothing.
    """
    surprise = np.clip(norm.isf(p_value), -MAX_SURPRISE, MAX_SURPRISE) - EVIDENCE_DRIFT
    steps = np.nan_to_num(trailing(surprise, EVIDENCE_NIGHTS))
    evidence = np.zeros(p_value.shape)
    for night in range(EVIDENCE_NIGHTS):
        evidence = np.maximum(0.0, evidence + steps[:, :, night])
    return np.where(np.isnan(p_value), np.nan, np.maximum(0.0, evidence + surprise))


def judge(detector: Detector, fleet: Fleet, min_readings: int) -> Night:
    """Every figure of every household and night; the first `LEAD_NIGHTS` lack their past."""
    rebuilt = reconstruct(detector, fleet, slice(None), min_readings)
    score = two_sided(detector, rebuilt.score).astype(np.float32)
    p_value = p_values(detector, score)
    history = np.isfinite(trailing(rebuilt.score, LEVEL_NIGHTS + ERROR_NIGHTS))
    return Night(
        expected_kwh=rebuilt.expected_kwh,
        residual=rebuilt.half_hour / detector.residual_scale.float().numpy(),
        score=score,
        p_value=p_value,
        evidence=accumulate(p_value),
        history=history.sum(axis=-1),
    )


def calibrate(detector: Detector, fleet: Fleet, nights: int, min_readings: int) -> None:
    """Set the detector's reference from the last `nights` of a fleet: peers, residuals, scores."""
    rebuilt = reconstruct(detector, fleet, slice(None), min_readings)
    center, mad = median_and_mad(rebuilt.score[:, -nights:].reshape(1, -1))
    squares = rebuilt.half_hour[:, -nights:].reshape(-1, HALF_HOURS) ** 2
    detector.peer_center = torch.tensor(float(center[0]))
    detector.peer_scale = torch.tensor(max(float(1.4826 * mad[0]), 1e-3))
    detector.residual_scale = torch.from_numpy(np.sqrt(np.nanmean(squares, axis=0)) + 1e-3)
    score = two_sided(detector, rebuilt.score)[:, -nights:].astype(np.float32)
    detector.fit_calibration(torch.from_numpy(score[np.isfinite(score)]))


def score_nights(
    detector: Detector,
    fleet: Fleet,
    first: date,
    *,
    min_readings: int,
    alert_budget: float,
    model_version: str,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The `scores` and `anomalies` of the fleet's nights from `first` on.

    `fleet` holds the `LEAD_NIGHTS` before `first` too. `alert_budget` is the number of false
    alarms allowed in 1,000 normal household-nights.
    """
    judged = judge(detector, fleet, min_readings)
    skip = fleet.nights.index(first)
    table = _table(fleet, judged, skip, min_readings).with_columns(
        is_anomaly=(pl.col("p_value") <= alert_budget / 1000).fill_null(value=False),
        rank=_rank(),
        model_version=pl.lit(model_version),
    )
    flagged = table.filter("is_anomaly").sort("night", "household_id")
    anomalies = explain(
        flagged,
        fleet.kwh[flagged["h"], flagged["d"]],
        judged.expected_kwh[flagged["h"], flagged["d"]],
        judged.residual[flagged["h"], flagged["d"]],
    )
    reasons = anomalies.select("household_id", "night", "reason")
    scores = table.join(reasons, on=("household_id", "night"), how="left")
    return (
        Scores.validate(
            scores.select(Scores.column_names()).sort("night", "household_id"), cast=True
        ),
        Anomalies.validate(anomalies.select(Anomalies.column_names()), cast=True),
    )


def lead(first: date) -> date:
    """The first night that must be known to score `first`."""
    return first - timedelta(days=LEAD_NIGHTS)


def _table(fleet: Fleet, judged: Night, skip: int, min_readings: int) -> pl.DataFrame:
    """One row a household and night from `skip` on, with its place `h, d` in the arrays."""
    kwh = fleet.kwh[:, skip:]
    h, d = np.divmod(np.arange(kwh.shape[0] * kwh.shape[1]), kwh.shape[1])
    n_readings = fleet.n_readings[:, skip:].ravel()
    observed = np.isfinite(kwh)
    expected = np.where(observed, judged.expected_kwh[:, skip:], 0.0).sum(axis=2).ravel()
    frame = pl.DataFrame(
        {
            "h": h,
            "d": d + skip,
            "n_readings": n_readings,
            "score": judged.score[:, skip:].ravel(),
            "p_value": judged.p_value[:, skip:].ravel(),
            "evidence": judged.evidence[:, skip:].ravel(),
            "actual_kwh": np.nansum(kwh, axis=2).ravel(),
            "expected_kwh": expected,
            "history": judged.history[:, skip:].ravel(),
        }
    ).with_columns(pl.col("score", "p_value", "evidence").fill_nan(None))
    is_scored = pl.col("n_readings") >= min_readings
    return frame.with_columns(
        pl.when(is_scored).then("actual_kwh"),
        pl.when(is_scored).then("expected_kwh"),
        household_id=pl.Series(fleet.household_ids).gather(h),
        night=pl.Series(fleet.nights).gather(d + skip),
        status=pl.when(pl.col("n_readings") == 0)
        .then(pl.lit("missing"))
        .when(~is_scored)
        .then(pl.lit("incomplete"))
        .when(pl.col("history") < WARM_NIGHTS)
        .then(pl.lit("cold_start"))
        .otherwise(pl.lit("scored")),
    )


def _rank() -> pl.Expr:
    """Urgency within a night: rarest first, then most evidence; null where there is no score."""
    order = pl.struct(
        pl.col("p_value"), -pl.col("evidence"), -pl.col("score"), pl.col("household_id")
    )
    rank = order.rank("ordinal").over("night", pl.col("p_value").is_null())
    return pl.when(pl.col("p_value").is_not_null()).then(rank)

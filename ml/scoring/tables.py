"""The result tables of a span of nights, and what need not be computed again for later ones."""

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final, NamedTuple

import numpy as np
import polars as pl

from ml.arrays import BoolArray, FloatArray, pad_left
from ml.episodes import find_episode_starts
from ml.explain.reasons import explain_anomalies, select_context_nights
from ml.fleet import Fleet, count_usable_nights
from ml.schemas import Anomalies, Nights, Scores
from ml.scoring.calibration import CalibratedScores
from ml.scoring.config import MAX_CONTEXT_NIGHTS, ScoringConfig
from ml.scoring.detector import Detector
from ml.scoring.network_pass import FleetNetworkOutput

WARMUP_NIGHTS: Final = (
    ScoringConfig().calibration_warmup_nights
    + ScoringConfig().usual_error_nights
    + MAX_CONTEXT_NIGHTS
)
"""Nights before a night that its flag may rest on, by this release's numbers and any network."""


class CachedNights(NamedTuple):
    """What later nights need of a night `[H, D]`, NaN where it was not computed."""

    log_odds: FloatArray
    """The network's log odds of the night."""
    surprisal: FloatArray
    """The surprisal of the night by itself."""


@dataclass(frozen=True)
class FleetScores(CalibratedScores):
    """All figures of households and nights `[H, D]`."""

    expected_kwh: FloatArray
    """`[H, D, 48]` expected profile."""
    half_hour_score: FloatArray
    """`[H, D, 48]` how far each half-hour deviates, above 1 where it shows an anomaly."""


@dataclass(frozen=True)
class ResultTables:
    """The result tables of some nights, and what may be cached."""

    scores: pl.DataFrame
    anomalies: pl.DataFrame
    nights: pl.DataFrame
    to_cache: CachedNights
    """Of all nights that the tables rest on."""


@dataclass(frozen=True)
class _Span:
    """The nights to publish, `[skip:]` of a fleet, with all that was computed for them."""

    detector: Detector
    fleet: Fleet
    output: FleetNetworkOutput
    """Of the nights to publish alone."""
    calibrated: CalibratedScores
    """Of all nights of the fleet."""
    skip: int
    min_readings: int


def first_night_needed(first: date, detector: Detector | None = None) -> date:
    """Return the first night that must be loaded to score `first`: by this detector, or by any."""
    if detector is None:
        return first - timedelta(days=WARMUP_NIGHTS)
    return first - timedelta(days=_log_odds_warmup_nights(detector) + MAX_CONTEXT_NIGHTS)


def score_fleet(detector: Detector, fleet: Fleet, min_readings: int) -> FleetScores:
    """Return every figure of every household-night; the first nights lack their warm-up."""
    output = detector.run_network(fleet, slice(None), min_readings)
    calibration = detector.calibration
    calibrated = calibration.calibrate_scores(output.log_odds, fleet, min_readings)
    return FleetScores(
        **vars(calibrated),
        expected_kwh=output.expected_kwh,
        half_hour_score=calibration.score_half_hours(output.half_hour_log_odds),
    )


def score_nights(
    detector: Detector,
    fleet: Fleet,
    first: date,
    *,
    min_readings: int,
    alert_budget: float,
    model_version: str,
    cached: CachedNights | None = None,
) -> ResultTables:
    """Return the result tables of the fleet's nights from `first` on.

    `fleet` begins with `first_night_needed`, `cached` is what an earlier call gave for some of its
    nights, `alert_budget` is false alert episodes per 1,000 normal household-nights. The same
    nights give the same tables to the last bit, alone, in bulk and with or without a cache.

    Raises:
        UserError: too few calibration nights for the budget.
    """
    calibration = detector.calibration
    # Refused before anything is computed.
    threshold = calibration.alert_threshold(alert_budget)
    skip = fleet.nights.index(first)
    output = detector.run_network(fleet, slice(skip, None), min_readings)
    log_odds = _complete_log_odds(detector, fleet, output.log_odds, cached, min_readings)
    # Nights that were loaded only as network context have no log odds: they are cut off.
    n_before = _error_warmup_nights(detector) + detector.config.scoring.surprisal_lookback_nights
    start = max(0, skip - n_before)
    recent = fleet.select_nights(start)
    recent_log_odds = log_odds[:, start:]
    recent_surprisal = None
    if cached is not None and calibration.score_kind == "log_odds":
        # The surprisal of an error depends on its household's usual error, of nights before the
        # cached ones, so it is computed anew.
        recent_surprisal = cached.surprisal[:, start:]
    calibrated = calibration.calibrate_scores(
        recent_log_odds, recent, min_readings, recent_surprisal
    )
    span = _Span(detector, recent, output, calibrated, skip - start, min_readings)
    alert_p_value = calibration.alert_p_values(calibrated.p_value, calibrated.evidence)
    is_anomaly = alert_p_value <= threshold
    rows = _build_score_rows(span).with_columns(
        is_anomaly=is_anomaly[:, span.skip :].ravel(),
        alert_p_value=alert_p_value[:, span.skip :].ravel(),
        model_version=pl.lit(model_version),
    )
    rows = rows.with_columns(rank=_rank_by_urgency())
    anomalies = _explain_flagged(span, rows.filter("is_anomaly").sort("night", "household_id"))
    reasons = anomalies.select("household_id", "night", "reason")
    scores = rows.join(reasons, on=("household_id", "night"), how="left")
    return ResultTables(
        scores=Scores.validate(
            scores.select(Scores.column_names()).sort("night", "household_id"), cast=True
        ),
        anomalies=Anomalies.validate(anomalies.select(Anomalies.column_names()), cast=True),
        nights=_build_nights_table(span, is_anomaly, alert_budget, model_version),
        to_cache=CachedNights(
            pad_left(recent_log_odds, start), pad_left(calibrated.surprisal, start)
        ),
    )


def _error_warmup_nights(detector: Detector) -> int:
    """Return the nights before a night whose errors its flag rests on: more than of log odds."""
    config = detector.config.scoring
    return config.calibration_warmup_nights + config.usual_error_nights


def _log_odds_warmup_nights(detector: Detector) -> int:
    """Return the nights before a night whose log odds its flag rests on.

    An error is compared with the household's usual error of more nights before; log odds are not.
    """
    if detector.calibration.score_kind == "error":
        return _error_warmup_nights(detector)
    return detector.config.scoring.calibration_warmup_nights


def _complete_log_odds(
    detector: Detector,
    fleet: Fleet,
    latest: FloatArray,
    cached: CachedNights | None,
    min_readings: int,
) -> FloatArray:
    """Return log odds `[H, D]`: the latest nights', those cached, and the missing, computed."""
    skip = len(fleet.nights) - latest.shape[1]
    begin = max(0, skip - _log_odds_warmup_nights(detector))
    log_odds = np.full(fleet.kwh.shape[:2], np.nan, dtype=np.float32)
    if cached is not None:
        log_odds = cached.log_odds.copy()
    log_odds[:, skip:] = latest
    is_missing = np.asarray(~np.isfinite(log_odds).any(axis=0))
    is_missing[:begin] = False
    is_missing[skip:] = False
    computed = detector.compute_log_odds(fleet, is_missing, min_readings)
    log_odds[:, is_missing] = computed[:, is_missing]
    log_odds[:, :begin] = np.nan
    return log_odds


def _build_score_rows(span: _Span) -> pl.DataFrame:
    """Return one row a household and night to publish, with its place `h, d` in the fleet."""
    fleet, calibrated, skip = span.fleet, span.calibrated, span.skip
    config = span.detector.config.scoring
    kwh = fleet.kwh[:, skip:]
    h, d = np.divmod(np.arange(kwh.shape[0] * kwh.shape[1]), kwh.shape[1])
    expected_where_observed = np.where(np.isfinite(kwh), span.output.expected_kwh, 0.0)
    n_usable_nights = count_usable_nights(fleet, config.history_nights, span.min_readings)
    rows = pl.DataFrame(
        {
            "h": h,
            "d": d + skip,
            "n_readings": fleet.n_readings[:, skip:].ravel(),
            "score": calibrated.score[:, skip:].ravel(),
            "p_value": calibrated.p_value[:, skip:].ravel(),
            "evidence": calibrated.evidence[:, skip:].ravel(),
            "actual_kwh": np.nansum(kwh, axis=2).ravel(),
            "expected_kwh": expected_where_observed.sum(axis=2).ravel(),
            "n_usable_nights": n_usable_nights[:, skip:].ravel(),
        }
    ).with_columns(pl.col("score", "p_value", "evidence").fill_nan(None))
    is_scored = pl.col("n_readings") >= span.min_readings
    return rows.with_columns(
        pl.when(is_scored).then("actual_kwh"),
        pl.when(is_scored).then("expected_kwh"),
        household_id=pl.Series(fleet.household_ids).gather(h),
        night=pl.Series(fleet.nights).gather(d + skip),
        status=pl.when(pl.col("n_readings") == 0)
        .then(pl.lit("missing"))
        .when(~is_scored)
        .then(pl.lit("incomplete"))
        .when(pl.col("n_usable_nights") < config.established_nights)
        .then(pl.lit("cold_start"))
        .otherwise(pl.lit("scored")),
    )


def _rank_by_urgency() -> pl.Expr:
    """Rank a night's households by alert p-value, then evidence; null where there is no score."""
    order = pl.struct(
        pl.col("alert_p_value"), -pl.col("evidence"), -pl.col("score"), pl.col("household_id")
    )
    rank = order.rank("ordinal").over("night", pl.col("p_value").is_null())
    return pl.when(pl.col("p_value").is_not_null()).then(rank)


def _explain_flagged(span: _Span, flagged: pl.DataFrame) -> pl.DataFrame:
    """Return the flagged household-nights with their profiles, reasons and half-hours."""
    config = span.detector.config.reasons
    h = flagged["h"].to_numpy()
    d = flagged["d"].to_numpy()
    d_published = d - span.skip
    half_hour_log_odds = span.output.half_hour_log_odds[h, d_published]
    return explain_anomalies(
        flagged,
        span.fleet.kwh[h, d],
        span.output.expected_kwh[h, d_published],
        span.detector.calibration.score_half_hours(half_hour_log_odds),
        select_context_nights(span.fleet.kwh, h, d, config),
        min_readings=span.min_readings,
        config=config,
    )


def _build_nights_table(
    span: _Span, is_anomaly: BoolArray, alert_budget: float, model_version: str
) -> pl.DataFrame:
    """Return one row a night: how many were scored and flagged, and what the fleet did."""
    calibrated = span.calibrated
    n_scored = np.isfinite(calibrated.p_value).sum(axis=0)
    n_opened = find_episode_starts(is_anomaly).sum(axis=0)
    frame = pl.DataFrame(
        {
            "night": span.fleet.nights,
            "scored": n_scored,
            "flagged": is_anomaly.sum(axis=0),
            "opened": n_opened,
            "opened_per_1000": 1000 * n_opened / np.maximum(n_scored, 1),
            "fleet_shift": calibrated.fleet_shift,
            "tail_inflation": calibrated.tail_inflation[0],
            "tail_inflation_training": calibrated.tail_inflation[1],
        }
    )
    return Nights.validate(
        frame[span.skip :]
        .with_columns(
            alert_budget=alert_budget,
            calibration_size=span.detector.calibration.n_reference_scores,
            model_version=pl.lit(model_version),
        )
        .select(Nights.column_names()),
        cast=True,
    )

"""From a fleet and a detector to scores: how far, how rare, how lasting.

A night's figures depend on that night and the `LEAD_NIGHTS` before it alone. What the network
makes of a household is compared with what it made of the same household on the nights before and
of the fleet on the same night; rules join where they see more; both are told as a rarity, -log10
of the share of ordinary household-nights that go as far.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final, NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from scipy.special import expit, ndtri
from torch import Tensor

from ml.arrays import FloatArray, median_and_mad, pad_left, rolling_windows
from ml.calibration import (
    Bools,
    alert_threshold,
    compute_alert_curve,
    compute_alert_p_values,
    compute_p_values,
    hash_household_ids,
)
from ml.detector import Detector
from ml.episodes import SILENCE_NIGHTS, find_episode_starts
from ml.evaluation.baseline_rules import compute_repeated_run_excess, compute_zero_run_excess
from ml.explain.reasons import explain_anomalies, select_context_nights
from ml.fleet import LEVEL_NIGHTS, Fleet, count_usable_nights
from ml.models.base import NetworkOutput
from ml.peers import MIN_OWN_NIGHTS
from ml.schemas import HALF_HOURS, Anomalies, Nights, Scores
from ml.windows import FleetWindows

BASE_RATE_NIGHTS: Final = 28
TAIL_INFLATION_NIGHTS: Final = 14
EVIDENCE_NIGHTS: Final = 14
# The nights of silence, the fleet's nights before, each home's before, its usual score before.
CALIBRATION_WARMUP_NIGHTS: Final = SILENCE_NIGHTS + TAIL_INFLATION_NIGHTS + 2 * BASE_RATE_NIGHTS
MAX_CONTEXT_NIGHTS: Final = 45
"""The most nights before a night that a network may want."""
WARMUP_NIGHTS: Final = CALIBRATION_WARMUP_NIGHTS + MAX_CONTEXT_NIGHTS
HISTORY_COUNT_NIGHTS: Final = 56
COLD_START_NIGHTS: Final = 7
PEER_WEIGHT: Final = 4.0
MIN_HOUSEHOLDS_FOR_SHIFT: Final = 20
RULE_WEIGHT: Final = 0.2
MAX_RULE_SURPRISAL: Final = 2.0
UNUSUAL_SURPRISAL: Final = 1.0
EXTREME_SURPRISAL: Final = 3.0
BASE_RATE_PRIOR_NIGHTS: Final = 1.5
BASE_RATE_POWER: Final = 1.5
TAIL_INFLATION_PRIOR: Final = 40.0
EVIDENCE_SHARE: Final = 0.15
EVIDENCE_DECAY: Final = 0.7
EVIDENCE_DRIFT: Final = 1.0
MAX_NORMAL_SCORE: Final = 5.0

Ints = NDArray[np.int_]
BatchOutput = tuple[tuple[Ints, Ints], NetworkOutput]


@dataclass(frozen=True)
class FleetNetworkOutput:
    """What the network makes of households and nights `[H, D]`, NaN for too few readings."""

    expected_kwh: NDArray[np.float32]
    """`[H, D, 48]`"""
    half_hour_log_odds: NDArray[np.float32]
    """How far each half-hour deviates, `[H, D, 48]`, NaN where missing."""
    log_odds: NDArray[np.float32]
    """The network's own score, not yet compared with anything."""


@dataclass(frozen=True)
class CalibratedScores:
    """What is made of the network's scores and the rules, `[H, D]`; NaN if not scored."""

    surprisal: FloatArray
    """Rarity of the night by itself, by network and rules."""
    score: FloatArray
    """The same with what came before."""
    p_value: FloatArray
    evidence: FloatArray
    fleet_shift: FloatArray
    """`[D]` what the network's score of the whole fleet moved by, taken out."""
    tail_inflation: FloatArray
    """`[2, D]` unusual nights over expected ones, of homes learnt from and of the others."""


@dataclass(frozen=True)
class FleetScores(CalibratedScores):
    """All of households and nights."""

    expected_kwh: FloatArray
    half_hour_score: FloatArray
    """How far each half-hour deviates, `[H, D, 48]`, above 1 where it shows an anomaly."""


class CachedScores(NamedTuple):
    """What a night came to by itself `[H, D]`, NaN where it is not known."""

    log_odds: FloatArray
    """The network's own score."""
    surprisal: FloatArray
    """How rare the night is by network and rules, before what came before counts."""


@dataclass(frozen=True)
class ResultTables:
    """The result tables of some nights, and what need not be computed again."""

    scores: pl.DataFrame
    anomalies: pl.DataFrame
    nights: pl.DataFrame
    to_cache: CachedScores
    """All nights that the result rests on."""


def run_network(
    detector: Detector, fleet: Fleet, nights: slice, min_readings: int
) -> FleetNetworkOutput:
    """Show the network every household-night of these nights that has enough readings."""
    shape = fleet.kwh[:, nights].shape
    expected, half_hour = (np.full(shape, np.nan, dtype=np.float32) for _ in range(2))
    score = np.full(shape[:2], np.nan, dtype=np.float32)
    first = nights.indices(len(fleet.nights))[0]
    for (h, d), judged in _iterate_batches(
        detector, fleet, _mask_nights(fleet, nights), min_readings
    ):
        expected[h, d - first] = judged.expected_kwh.numpy()
        half_hour[h, d - first] = judged.half_hour_log_odds.numpy()
        score[h, d - first] = judged.log_odds.numpy()
    return FleetNetworkOutput(expected, half_hour, score)


def compute_log_odds(
    detector: Detector, fleet: Fleet, nights: Bools, min_readings: int
) -> FloatArray:
    """The network's own scores `[H, D]` of the nights `[D]` wanted; NaN elsewhere."""
    score = np.full(fleet.kwh.shape[:2], np.nan, dtype=np.float32)
    for places, judged in _iterate_batches(detector, fleet, nights, min_readings):
        score[places] = judged.log_odds.numpy()
    return score


def _mask_nights(fleet: Fleet, nights: slice) -> Bools:
    chosen = np.zeros(len(fleet.nights), dtype=np.bool_)
    chosen[nights] = True
    return chosen


def _iterate_batches(
    detector: Detector, fleet: Fleet, nights: Bools, min_readings: int
) -> Iterator[BatchOutput]:
    """The places of the nights `[D]` with enough readings, and what the detector makes of them."""
    chosen = (fleet.n_readings >= min_readings) & nights
    if not chosen.any():
        return
    start = max(0, int(nights.argmax()) - max(detector.network.context_nights, LEVEL_NIGHTS))
    chosen, seen = chosen[:, start:], fleet.select_nights(start)
    windows = FleetWindows(
        seen, detector.network.context_nights, min_readings, borrow_from_peers=True
    )
    program = detector.scoring_function()

    def shown(places: Tensor) -> BatchOutput:
        with torch.inference_mode():
            judged = program(windows.gather_windows(places))
        h, d = np.unravel_index(places.numpy(), chosen.shape)
        return (h, d + start), judged

    places = torch.from_numpy(np.flatnonzero(chosen))
    yield from _map_in_threads(shown, torch.split(places, detector.network.scoring_batch_size))


def _map_in_threads(
    function: Callable[[Tensor], BatchOutput], batches: Sequence[Tensor]
) -> Iterator[BatchOutput]:
    """What a function makes of batches, in their order: a thread a core, each of one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(function, batches)
    finally:
        torch.set_num_threads(threads)


def standardize_log_odds(detector: Detector, scores: FloatArray) -> tuple[FloatArray, FloatArray]:
    """How far the network's scores `[H, D]` stand out, and the fleet's common movement `[D]`.

    What the night did to everybody is taken out. A network whose score is an error is compared with
    the household's own usual error, on both sides: one that is unusually small is as suspicious as
    a large one. Few nights of history lean on the peers, by shrinkage.
    """
    raw = scores.astype(np.float64)
    if detector.network.score_kind == "log_odds":
        common = fleet_median(raw - float(detector.peer_center), 0.0)
        return raw - common, common
    windows = rolling_windows(raw, BASE_RATE_NIGHTS)
    count = np.isfinite(windows).sum(axis=-1)
    median, mad = median_and_mad(windows)
    weight = count / (count + PEER_WEIGHT)
    usual = fleet_median(median, float(detector.peer_center))
    own = weight * np.nan_to_num(median) + (1 - weight) * usual
    common = fleet_median(raw - own, 0.0)
    variance = weight * (1.4826 * np.nan_to_num(mad)) ** 2
    variance += (1 - weight) * float(detector.peer_scale) ** 2
    return np.abs(raw - own - common) / np.sqrt(variance), common


def fleet_median(values: FloatArray, otherwise: float) -> FloatArray:
    """The fleet's median of each night `[D]`, where enough households have a value."""
    median, _ = median_and_mad(values.T)
    enough = np.isfinite(values).sum(axis=0) >= MIN_HOUSEHOLDS_FOR_SHIFT
    return np.where(enough, median, otherwise)


def compute_surprisal(
    detector: Detector, stands: FloatArray, fleet: Fleet, min_readings: int
) -> FloatArray:
    """How rare a night `[H, D]` is by the network, and rarer by what the rules find surprising.

    The most surprising rule adds a share of its rarity beyond `UNUSUAL`, up to `MOST_RULED`: homes
    that repeat themselves or fall silent by habit are many, and the network has seen the run too.
    """
    repeats = detector.repeated_readings_tail.surprisal(
        compute_repeated_run_excess(fleet, min_readings)
    )
    zeros = detector.zero_readings_tail.surprisal(compute_zero_run_excess(fleet, min_readings))
    ruled = np.clip(np.fmax(repeats, zeros) - UNUSUAL_SURPRISAL, 0, MAX_RULE_SURPRISAL)
    joined = detector.deviation_tail.surprisal(stands) + RULE_WEIGHT * np.nan_to_num(ruled)
    return np.maximum(joined - cold_start_penalty(fleet, min_readings), 0.0)


def cold_start_penalty(fleet: Fleet, min_readings: int) -> FloatArray:
    """How much rarer a night `[H, D]` looks than it is while a home has few of its own; then 0."""
    own = count_usable_nights(fleet, MIN_OWN_NIGHTS, min_readings)
    return np.log10(
        (1 + COLD_START_NIGHTS / (own + 0.5)) / (1 + COLD_START_NIGHTS / (MIN_OWN_NIGHTS + 0.5))
    )


def base_rate_penalty(rarity: FloatArray) -> FloatArray:
    """How much rarer than it is a night `[H, D]` looks where unusual nights are usual.

    From the household's rate of unusual nights over `OWN_NIGHTS`, shrunk to the fleet's; the
    extreme ones are left out.
    """
    before = rolling_windows(rarity, BASE_RATE_NIGHTS)
    unusual = ((before >= UNUSUAL_SURPRISAL) & (before < EXTREME_SURPRISAL)).sum(axis=-1)
    expected = 10**-UNUSUAL_SURPRISAL * np.isfinite(before).sum(axis=-1)
    return BASE_RATE_POWER * np.log10(
        (BASE_RATE_PRIOR_NIGHTS + unusual) / (BASE_RATE_PRIOR_NIGHTS + expected)
    )


def measure_tail_inflation(p_value: FloatArray, learnt: Bools) -> FloatArray:
    """How many of the last nights' `[H, D]` p-values lie below 0.1 over how many should, `[2, D]`.

    Of the households not learnt from and of those learnt from; extreme nights are left out, since
    they are what is looked for. Shrunk to 1.
    """
    edge, least = 10**-UNUSUAL_SURPRISAL, 10**-EXTREME_SURPRISAL
    ordinary = p_value > least
    unusual = ordinary & (p_value <= edge)
    result = np.empty((2, p_value.shape[1]))
    for group in (False, True):
        found, known = (
            rolling_windows(
                flags[learnt == group].sum(axis=0, keepdims=True).astype(float),
                TAIL_INFLATION_NIGHTS,
            )
            for flags in (unusual, ordinary)
        )
        expected = (edge - least) / (1 - least) * np.nansum(known[0], axis=1)
        result[int(group)] = (TAIL_INFLATION_PRIOR + np.nansum(found[0], axis=1)) / (
            TAIL_INFLATION_PRIOR + expected
        )
    return result


def inflate_p_values(p_value: FloatArray, height: FloatArray) -> FloatArray:
    """p-values whose tail is as high as the fleet's last nights were; 1 stays 1."""
    edge = 10**-UNUSUAL_SURPRISAL
    high = np.minimum(edge * height, 0.5)
    body = 1 - (1 - p_value) * (1 - high) / (1 - edge)
    return np.where(p_value <= edge, p_value * high / edge, body)


def accumulate_evidence(rarity: FloatArray) -> tuple[FloatArray, FloatArray]:
    """One-sided CUSUM of the nights' surprises (Page 1954) that decays, over `EVIDENCE_NIGHTS`.

    Before each night `[H, D]`, and with it. A night's surprise is the normal score of its rarity; a
    night without a score adds nothing.
    """
    surprise = np.clip(-ndtri(10.0 ** -np.asarray(rarity)), None, MAX_NORMAL_SCORE) - EVIDENCE_DRIFT
    steps = np.pad(np.nan_to_num(surprise), ((0, 0), (EVIDENCE_NIGHTS, 0)))
    before = np.zeros(rarity.shape)
    for night in range(EVIDENCE_NIGHTS):
        before = np.maximum(
            0.0, EVIDENCE_DECAY * before + steps[:, night : night + rarity.shape[1]]
        )
    evidence = np.maximum(0.0, EVIDENCE_DECAY * before + surprise)
    return before, np.where(np.isnan(rarity), np.nan, evidence)


def calibrate_scores(
    detector: Detector,
    fleet: Fleet,
    log_odds: FloatArray,
    min_readings: int,
    cached_surprisal: FloatArray | None = None,
) -> CalibratedScores:
    """Scores, p-values and evidence from the network's own scores `[H, D]`.

    `known` are rarities that need not be computed again, NaN where they are not.
    """
    stands, common = standardize_log_odds(detector, log_odds)
    alone = _complete_surprisal(detector, stands, fleet, min_readings, cached_surprisal)
    rarity, at_home, evidence = _score_and_evidence(alone)
    p_value = compute_p_values(detector.reference_scores.numpy(), at_home)
    learnt = np.isin(
        hash_household_ids(fleet.household_ids), detector.training_household_hashes.numpy()
    )
    height = measure_tail_inflation(p_value, learnt)
    return CalibratedScores(
        surprisal=alone,
        score=rarity,
        p_value=inflate_p_values(p_value, height[learnt.astype(int)]),
        evidence=evidence,
        fleet_shift=common,
        tail_inflation=height,
    )


def _complete_surprisal(
    detector: Detector,
    stands: FloatArray,
    fleet: Fleet,
    min_readings: int,
    known: FloatArray | None,
) -> FloatArray:
    """What `join` gives, from the first night on of which not all is known."""
    scored = np.isfinite(stands)
    rarity = np.full(stands.shape, np.nan) if known is None else np.where(scored, known, np.nan)
    missing = scored.any(axis=0) & ~np.isfinite(rarity).any(axis=0)
    if missing.any():
        start = int(missing.argmax())
        past = max(0, start - max(LEVEL_NIGHTS, MIN_OWN_NIGHTS))
        joined = compute_surprisal(
            detector, stands[:, past:], fleet.select_nights(past), min_readings
        )
        rarity[:, start:] = joined[:, start - past :]
    return rarity


def _score_and_evidence(alone: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Rarity of nights `[H, D]` with what came before, the same among the home's own, evidence."""
    before, evidence = accumulate_evidence(alone)
    rarity = alone + EVIDENCE_SHARE * before
    return rarity, rarity - base_rate_penalty(alone), evidence


def score_half_hours(detector: Detector, half_hour_log_odds: FloatArray) -> FloatArray:
    """How far half-hours `[..., 48]` deviate, above 1 where they show an anomaly; NaN stays NaN.

    An error in units of its usual one; of log odds, twice the probability.
    """
    if detector.network.score_kind == "error":
        return half_hour_log_odds / detector.half_hour_error_scale.float().numpy()
    return 2 * expit(half_hour_log_odds)


def score_fleet(detector: Detector, fleet: Fleet, min_readings: int) -> FleetScores:
    """Every figure of every household and night; the first `LEAD_NIGHTS` lack their past."""
    rebuilt = run_network(detector, fleet, slice(None), min_readings)
    weighed = calibrate_scores(detector, fleet, rebuilt.log_odds, min_readings)
    return FleetScores(
        **vars(weighed),
        expected_kwh=rebuilt.expected_kwh,
        half_hour_score=score_half_hours(detector, rebuilt.half_hour_log_odds),
    )


def calibrate_detector(
    detector: Detector,
    fleet: Fleet,
    n_nights: int,
    min_readings: int,
    training_household_ids: list[str] | None = None,
) -> None:
    """Set the detector's references from the last `nights` of a fleet that it has not `learnt`."""
    detector.set_training_households(
        torch.from_numpy(hash_household_ids(training_household_ids or []))
    )
    rebuilt = run_network(detector, fleet, slice(None), min_readings)
    last = slice(len(fleet.nights) - n_nights, None)
    center, mad = median_and_mad(rebuilt.log_odds[:, last].reshape(1, -1))
    squares = rebuilt.half_hour_log_odds[:, last].reshape(-1, HALF_HOURS) ** 2
    detector.peer_center = torch.tensor(float(center[0]))
    detector.peer_scale = torch.tensor(max(float(1.4826 * mad[0]), 1e-3))
    detector.half_hour_error_scale = torch.from_numpy(np.sqrt(np.nanmean(squares, axis=0)) + 1e-3)
    fit_calibration(detector, fleet, rebuilt.log_odds, last, min_readings)


def fit_calibration(
    detector: Detector, fleet: Fleet, log_odds: FloatArray, nights: slice, min_readings: int
) -> None:
    """The distributions of ordinary nights, from the network's own scores `[H, D]`."""
    stands, _ = standardize_log_odds(detector, log_odds)
    detector.deviation_tail.fit(stands[:, nights])
    detector.repeated_readings_tail.fit(compute_repeated_run_excess(fleet, min_readings)[:, nights])
    detector.zero_readings_tail.fit(compute_zero_run_excess(fleet, min_readings)[:, nights])
    _, at_home, evidence = _score_and_evidence(
        compute_surprisal(detector, stands, fleet, min_readings)
    )
    own = at_home[:, nights]
    detector.fit_reference_scores(torch.from_numpy(own[np.isfinite(own)]))
    p_value = compute_p_values(detector.reference_scores.numpy(), own)
    curve = compute_alert_curve(p_value, evidence[:, nights])
    detector.alert_curve = torch.from_numpy(curve)


def score_nights(
    detector: Detector,
    fleet: Fleet,
    first: date,
    *,
    min_readings: int,
    alert_budget: float,
    model_version: str,
    cached: CachedScores | None = None,
) -> ResultTables:
    """The result tables of the fleet's nights from `first` on.

    `fleet` holds the nights from `lead` on; `known` is what an earlier call gave for some of them.
    `alert_budget` is the number of false alert episodes allowed in 1,000 normal household-nights.

    Raises:
        UserError: the detector's calibration is too small for the budget.
    """
    curve = detector.alert_curve.numpy()
    limit = alert_threshold(curve, detector.config.calibration_size, alert_budget)
    skip = fleet.nights.index(first)
    rebuilt = run_network(detector, fleet, slice(skip, None), min_readings)
    raw = _complete_log_odds(
        detector, fleet, rebuilt.log_odds, cached and cached.log_odds, min_readings
    )
    start = max(0, skip - CALIBRATION_WARMUP_NIGHTS - LEVEL_NIGHTS)
    fleet, raw, skip = fleet.select_nights(start), raw[:, start:], skip - start
    # An error is compared with nights further back than those a rarity is known by.
    rarity = (
        cached.surprisal[:, start:]
        if cached and detector.network.score_kind == "log_odds"
        else None
    )
    weighed = calibrate_scores(detector, fleet, raw, min_readings, rarity)
    urgent = compute_alert_p_values(curve, weighed.p_value, weighed.evidence)
    flags = urgent <= limit
    table = _build_score_rows(fleet, weighed, rebuilt, skip, min_readings).with_columns(
        is_anomaly=flags[:, skip:].ravel(),
        urgency=urgent[:, skip:].ravel(),
        model_version=pl.lit(model_version),
    )
    table = table.with_columns(rank=_rank_expression())
    flagged = table.filter("is_anomaly").sort("night", "household_id")
    anomalies = _explain_flagged(detector, fleet, rebuilt, flagged, skip)
    reasons = anomalies.select("household_id", "night", "reason")
    scores = table.join(reasons, on=("household_id", "night"), how="left")
    return ResultTables(
        scores=Scores.validate(
            scores.select(Scores.column_names()).sort("night", "household_id"), cast=True
        ),
        anomalies=Anomalies.validate(anomalies.select(Anomalies.column_names()), cast=True),
        nights=_build_nights_table(
            detector, fleet, weighed, flags, skip, alert_budget, model_version
        ),
        to_cache=CachedScores(pad_left(raw, start), pad_left(weighed.surprisal, start)),
    )


def first_night_needed(first: date, detector: Detector | None = None) -> date:
    """The first night that must be known for `first` to be scored, by any detector or by this."""
    nights = CALIBRATION_WARMUP_NIGHTS if detector is None else _calibration_warmup_nights(detector)
    return first - timedelta(days=nights + MAX_CONTEXT_NIGHTS)


def _calibration_warmup_nights(detector: Detector) -> int:
    """The nights before that a night's score rests on; a log odds needs no usual score."""
    return (
        CALIBRATION_WARMUP_NIGHTS
        if detector.network.score_kind == "error"
        else CALIBRATION_WARMUP_NIGHTS - BASE_RATE_NIGHTS
    )


def _complete_log_odds(
    detector: Detector,
    fleet: Fleet,
    latest: FloatArray,
    known: FloatArray | None,
    min_readings: int,
) -> FloatArray:
    """The network's own scores `[H, D]`: the latest nights', those known, and what is missing."""
    skip = len(fleet.nights) - latest.shape[1]
    begin = max(0, skip - _calibration_warmup_nights(detector))
    nothing = np.full(fleet.kwh.shape[:2], np.nan, dtype=np.float32)
    raw = nothing if known is None else known.copy()
    raw[:, skip:] = latest
    missing = np.asarray(~np.isfinite(raw).any(axis=0))
    missing[:begin] = False
    missing[skip:] = False
    raw[:, missing] = compute_log_odds(detector, fleet, missing, min_readings)[:, missing]
    raw[:, :begin] = np.nan
    return raw


def _explain_flagged(
    detector: Detector, fleet: Fleet, rebuilt: FleetNetworkOutput, flagged: pl.DataFrame, skip: int
) -> pl.DataFrame:
    """The flagged household-nights with their profiles and reasons."""
    h, d = flagged["h"].to_numpy(), flagged["d"].to_numpy()
    return explain_anomalies(
        flagged,
        fleet.kwh[h, d],
        rebuilt.expected_kwh[h, d - skip],
        score_half_hours(detector, rebuilt.half_hour_log_odds[h, d - skip]),
        select_context_nights(fleet.kwh, h, d),
    )


def _build_nights_table(
    detector: Detector,
    fleet: Fleet,
    weighed: CalibratedScores,
    flags: Bools,
    skip: int,
    alert_budget: float,
    model_version: str,
) -> pl.DataFrame:
    """One row a night: how many were scored and flagged, and what the fleet did."""
    scored = np.isfinite(weighed.p_value).sum(axis=0)
    opened = find_episode_starts(flags).sum(axis=0)
    frame = pl.DataFrame(
        {
            "night": fleet.nights,
            "scored": scored,
            "flagged": flags.sum(axis=0),
            "opened": opened,
            "opened_per_1000": 1000 * opened / np.maximum(scored, 1),
            "fleet_shift": weighed.fleet_shift,
            "tail_inflation": weighed.tail_inflation[0],
            "calibration_tail_inflation": weighed.tail_inflation[1],
        }
    )
    return Nights.validate(
        frame[skip:]
        .with_columns(
            alert_budget=alert_budget,
            calibration_size=detector.config.calibration_size,
            model_version=pl.lit(model_version),
        )
        .select(Nights.column_names()),
        cast=True,
    )


def _build_score_rows(
    fleet: Fleet,
    weighed: CalibratedScores,
    rebuilt: FleetNetworkOutput,
    skip: int,
    min_readings: int,
) -> pl.DataFrame:
    """One row a household and night from `skip` on, with its place `h, d` in the arrays."""
    kwh = fleet.kwh[:, skip:]
    h, d = np.divmod(np.arange(kwh.shape[0] * kwh.shape[1]), kwh.shape[1])
    n_readings = fleet.n_readings[:, skip:].ravel()
    observed = np.isfinite(kwh)
    history = count_usable_nights(fleet, HISTORY_COUNT_NIGHTS, min_readings)
    expected = np.where(observed, rebuilt.expected_kwh, 0.0).sum(axis=2).ravel()
    frame = pl.DataFrame(
        {
            "h": h,
            "d": d + skip,
            "n_readings": n_readings,
            "score": weighed.score[:, skip:].ravel(),
            "p_value": weighed.p_value[:, skip:].ravel(),
            "evidence": weighed.evidence[:, skip:].ravel(),
            "actual_kwh": np.nansum(kwh, axis=2).ravel(),
            "expected_kwh": expected,
            "history": history[:, skip:].ravel(),
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
        .when(pl.col("history") < MIN_OWN_NIGHTS)
        .then(pl.lit("cold_start"))
        .otherwise(pl.lit("scored")),
    )


def _rank_expression() -> pl.Expr:
    """Urgency within a night, then most evidence; null where there is no score."""
    order = pl.struct(
        pl.col("urgency"), -pl.col("evidence"), -pl.col("score"), pl.col("household_id")
    )
    rank = order.rank("ordinal").over("night", pl.col("p_value").is_null())
    return pl.when(pl.col("p_value").is_not_null()).then(rank)

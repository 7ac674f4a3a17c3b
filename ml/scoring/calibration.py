"""The calibration of a detector: fitted once, held with its network, applied every night."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor, nn

from ml.arrays import BoolArray, FloatArray, median_and_mad, rolling_windows
from ml.fleet import Fleet
from ml.models.base import ScoreKind
from ml.schemas import HALF_HOURS
from ml.scoring.alerts import alert_threshold, compute_alert_curve, compute_alert_p_values
from ml.scoring.config import ScoringConfig
from ml.scoring.corrections import (
    base_rate_penalty,
    cold_start_penalty,
    inflate_p_values,
    measure_tail_inflation,
)
from ml.scoring.evidence import accumulate_evidence
from ml.scoring.network_pass import FleetNetworkOutput
from ml.scoring.rules import longest_repeated_run, longest_zero_run
from ml.scoring.tails import TailDistribution, compute_p_values

MAD_TO_STANDARD_DEVIATION = 1.4826
"""Standard deviations per median absolute deviation, for a normal distribution: 1 / 0.6745."""


@dataclass(frozen=True)
class CalibratedScores:
    """What calibration makes of a fleet's log odds and rules, `[H, D]`; NaN where not scored."""

    surprisal: FloatArray
    """-log10 of the share of calibration nights as deviant, of each night by itself: network and
    rules, less the cold-start penalty."""
    score: FloatArray
    """Surprisal plus a share of the evidence before; the column `score`."""
    p_value: FloatArray
    """Share of normal household-nights at least as extreme, inflated by the fleet's last nights."""
    evidence: FloatArray
    """Decayed CUSUM of surprisal with this night, in standard deviations."""
    fleet_shift: FloatArray
    """`[D]` what was subtracted from all log odds of the night."""
    tail_inflation: FloatArray
    """`[2, D]` factor of households that the network was not trained on, and of the others."""


class Calibration(nn.Module):
    """What the calibration nights say about log odds, rules and evidence.

    `fit` takes it from household-nights of households that no network was trained on, its buffers
    hold it, `calibrate_scores` turns log odds into surprisal, p-values and evidence, and
    `alert_p_values` and `alert_threshold` turn those into flags. Of the fleet that is scored it
    takes its shift and its tail inflation; of each household its habits, base rate and usual error.
    """

    half_hour_error_scale: Tensor
    """`[48]` root mean square error of each half-hour, in the unit of the network's error."""
    reference_center: Tensor
    """Median log odds of the calibration nights."""
    reference_scale: Tensor
    """Their spread: 1.4826 median absolute deviations."""
    reference_scores: Tensor
    """`[N]` scores less base-rate penalty of the calibration nights, sorted: the conformal set."""
    alert_curve: Tensor
    """`[T, 3]` of `compute_alert_curve`."""
    training_household_hashes: Tensor
    """`[M]` of the households that the network was trained on (`hash_household_ids`), sorted."""

    def __init__(
        self,
        config: ScoringConfig,
        score_kind: ScoreKind,
        n_reference_scores: int = 0,
        n_training_households: int = 0,
    ) -> None:
        super().__init__()
        self.config, self.score_kind = config, score_kind
        self.deviation_tail = TailDistribution(config.calibration)
        self.repeated_readings_tail = TailDistribution(config.calibration)
        self.zero_readings_tail = TailDistribution(config.calibration)
        n_steps = config.calibration.alert_curve_steps
        hashes = torch.zeros(n_training_households, dtype=torch.int64)
        self.register_buffer("half_hour_error_scale", torch.ones(HALF_HOURS))
        self.register_buffer("reference_center", torch.zeros(()))
        self.register_buffer("reference_scale", torch.ones(()))
        self.register_buffer("reference_scores", torch.zeros(n_reference_scores).double())
        self.register_buffer("alert_curve", torch.zeros(n_steps, 3).double())
        self.register_buffer("training_household_hashes", hashes)

    @property
    def n_reference_scores(self) -> int:
        """Number of calibration nights that p-values are shares of."""
        return len(self.reference_scores)

    # Fit

    def fit(
        self,
        output: FleetNetworkOutput,
        fleet: Fleet,
        n_nights: int,
        min_readings: int,
        training_household_ids: list[str],
    ) -> None:
        """Take everything from the last `n_nights` of a fleet of households not trained on.

        `output` is what the network makes of all of the fleet's nights: those before the last give
        base rates and evidence their past.
        """
        nights = slice(len(fleet.nights) - n_nights, None)
        self.set_training_households(training_household_ids)
        self._fit_error_scales(output, nights)
        self._fit_tails(output.log_odds, fleet, nights, min_readings)

    def set_training_households(self, household_ids: list[str]) -> None:
        """Store the hashed ids of the households that the network was trained on.

        Their tail inflation is measured separately.
        """
        hashes = torch.from_numpy(hash_household_ids(household_ids))
        self.training_household_hashes = hashes.sort().values

    def set_reference_scores(self, scores: Tensor) -> None:
        """Hold scores `[N]` as the sorted reference of p-values.

        Of more than `max_reference_scores`, as many evenly spread.
        """
        ordered = scores.double().sort().values
        size = self.config.calibration.max_reference_scores
        if len(ordered) > size:
            places = torch.linspace(0, len(ordered) - 1, size, dtype=torch.float64)
            ordered = ordered[places.round().long()]
        self.reference_scores = ordered

    def _fit_error_scales(self, output: FleetNetworkOutput, nights: slice) -> None:
        center, mad = median_and_mad(output.log_odds[:, nights].reshape(1, -1))
        squares = output.half_hour_log_odds[:, nights].reshape(-1, HALF_HOURS) ** 2
        min_scale = self.config.min_error_scale
        self.reference_center = torch.tensor(float(center[0]))
        self.reference_scale = torch.tensor(
            max(float(MAD_TO_STANDARD_DEVIATION * mad[0]), min_scale)
        )
        self.half_hour_error_scale = torch.from_numpy(
            np.sqrt(np.nanmean(squares, axis=0)) + min_scale
        )

    def _fit_tails(
        self, log_odds: FloatArray, fleet: Fleet, nights: slice, min_readings: int
    ) -> None:
        deviation, _ = self.standardize(log_odds)
        repeated_run = longest_repeated_run(fleet, min_readings, self.config.rules)
        zero_run = longest_zero_run(fleet, min_readings, self.config.rules)
        self.deviation_tail.fit(deviation[:, nights])
        self.repeated_readings_tail.fit(repeated_run[:, nights])
        self.zero_readings_tail.fit(zero_run[:, nights])
        surprisal = self.compute_surprisal(deviation, fleet, min_readings)
        _, comparable, evidence = self._score(surprisal)
        comparable = comparable[:, nights]
        self.set_reference_scores(torch.from_numpy(comparable[np.isfinite(comparable)]))
        p_value = compute_p_values(
            self.reference_scores.numpy(), comparable, self.config.calibration
        )
        curve = compute_alert_curve(p_value, evidence[:, nights], self.config.calibration)
        self.alert_curve = torch.from_numpy(curve)

    # Apply

    def calibrate_scores(
        self,
        log_odds: FloatArray,
        fleet: Fleet,
        min_readings: int,
        cached_surprisal: FloatArray | None = None,
    ) -> CalibratedScores:
        """Turn the log odds `[H, D]` of a fleet's nights into surprisal, p-values and evidence.

        `cached_surprisal` holds what need not be computed again, NaN elsewhere. A night needs
        the `calibration_warmup_nights` before it.
        """
        deviation, fleet_shift = self.standardize(log_odds)
        surprisal = self._complete_surprisal(deviation, fleet, min_readings, cached_surprisal)
        score, comparable, evidence = self._score(surprisal)
        reference = self.reference_scores.numpy()
        p_value = compute_p_values(reference, comparable, self.config.calibration)
        is_training_household = self.is_training_household(fleet.household_ids)
        inflation = measure_tail_inflation(p_value, is_training_household, self.config)
        of_household = inflation[is_training_household.astype(int)]
        return CalibratedScores(
            surprisal=surprisal,
            score=score,
            p_value=inflate_p_values(p_value, of_household, self.config),
            evidence=evidence,
            fleet_shift=fleet_shift,
            tail_inflation=inflation,
        )

    def standardize(self, log_odds: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the deviation `[H, D]` of log odds and the fleet shift `[D]` taken out of it.

        The fleet shift is the median over the households of a night: cold, a holiday or a price
        signal moves everybody. A network whose output is an error is compared with the household's
        own usual error (median and spread of the 28 nights before, shrunk to those of the fleet and
        of the calibration nights by a weight of 4 nights), on both sides: an error that is
        unusually small is as suspicious as a large one (docs/detector.md: AUC 0.45 to 0.76).
        """
        values = log_odds.astype(np.float64)
        if self.score_kind == "log_odds":
            fleet_shift = self._median_over_households(
                values - float(self.reference_center), otherwise=0.0
            )
            return values - fleet_shift, fleet_shift
        before = rolling_windows(values, self.config.usual_error_nights)
        n_before = np.isfinite(before).sum(axis=-1)
        own_median, own_mad = median_and_mad(before)
        own_weight = n_before / (n_before + self.config.peer_weight_nights)
        fleet_median = self._median_over_households(
            own_median, otherwise=float(self.reference_center)
        )
        usual = own_weight * np.nan_to_num(own_median) + (1 - own_weight) * fleet_median
        fleet_shift = self._median_over_households(values - usual, otherwise=0.0)
        own_spread = MAD_TO_STANDARD_DEVIATION * np.nan_to_num(own_mad)
        variance = own_weight * own_spread**2
        variance += (1 - own_weight) * float(self.reference_scale) ** 2
        return np.abs(values - usual - fleet_shift) / np.sqrt(variance), fleet_shift

    def _median_over_households(self, values: FloatArray, *, otherwise: float) -> FloatArray:
        """Return the median over the households of each night, `[H, D]` to `[D]`.

        `otherwise` where fewer than `min_households_for_shift` have a value.
        """
        median, _ = median_and_mad(values.T)
        n_households = np.isfinite(values).sum(axis=0)
        return np.where(n_households >= self.config.min_households_for_shift, median, otherwise)

    def compute_surprisal(
        self, deviation: FloatArray, fleet: Fleet, min_readings: int
    ) -> FloatArray:
        """Return the surprisal of each night by itself, `[H, D]`, at least 0.

        The network's, plus a fifth of what the more surprising of the two rules shows beyond 1 (at
        most 2), less the cold-start penalty. Rules only add: households that repeat themselves or
        fall silent by habit are many, and the network has seen the run too.
        """
        config = self.config
        repeated_run = longest_repeated_run(fleet, min_readings, config.rules)
        zero_run = longest_zero_run(fleet, min_readings, config.rules)
        rule_surprisal = np.fmax(
            self.repeated_readings_tail.surprisal(repeated_run),
            self.zero_readings_tail.surprisal(zero_run),
        )
        beyond_usual = np.clip(
            rule_surprisal - config.unusual_surprisal, 0, config.max_rule_surprisal
        )
        surprisal = self.deviation_tail.surprisal(deviation)
        surprisal = surprisal + config.rule_weight * np.nan_to_num(beyond_usual)
        return np.maximum(surprisal - cold_start_penalty(fleet, min_readings, config), 0.0)

    def _complete_surprisal(
        self,
        deviation: FloatArray,
        fleet: Fleet,
        min_readings: int,
        cached_surprisal: FloatArray | None,
    ) -> FloatArray:
        """Compute the surprisal from the first night on that the cache does not hold."""
        is_scored = np.isfinite(deviation)
        surprisal = np.full(deviation.shape, np.nan)
        if cached_surprisal is not None:
            surprisal = np.where(is_scored, cached_surprisal, np.nan)
        is_missing = is_scored.any(axis=0) & ~np.isfinite(surprisal).any(axis=0)
        if is_missing.any():
            start = int(is_missing.argmax())
            before = max(0, start - self.config.surprisal_lookback_nights)
            recent = fleet.select_nights(before)
            computed = self.compute_surprisal(deviation[:, before:], recent, min_readings)
            surprisal[:, start:] = computed[:, start - before :]
        return surprisal

    def _score(self, surprisal: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return score, score comparable among households, and evidence, each `[H, D]`."""
        evidence_before, evidence = accumulate_evidence(surprisal, self.config)
        score = surprisal + self.config.evidence_share * evidence_before
        return score, score - base_rate_penalty(surprisal, self.config), evidence

    def is_training_household(self, household_ids: list[str]) -> BoolArray:
        """Return which households `[H]` the network was trained on."""
        hashes = self.training_household_hashes.numpy()
        return np.isin(hash_household_ids(household_ids), hashes)

    def score_half_hours(self, half_hour_log_odds: FloatArray) -> FloatArray:
        """Return how far half-hours `[..., 48]` deviate, above 1 where they show an anomaly.

        Of log odds, twice the probability, so that even odds give 1; of an error, in units of the
        usual error of that half-hour. NaN stays NaN.
        """
        if self.score_kind == "log_odds":
            return 2 * expit(half_hour_log_odds)
        return half_hour_log_odds / self.half_hour_error_scale.float().numpy()

    def alert_p_values(self, p_value: FloatArray, evidence: FloatArray) -> FloatArray:
        """Return the smaller of p-value and share of calibration nights with as much evidence.

        In the shape of the arguments; a night is flagged if it is at most `alert_threshold`.
        """
        return compute_alert_p_values(self.alert_curve.numpy(), p_value, evidence)

    def alert_threshold(self, alert_budget: float) -> float:
        """Return the greatest alert p-value that is flagged within an alert budget.

        Raises:
            UserError: too few calibration nights for the budget.
        """
        return alert_threshold(
            self.alert_curve.numpy(),
            self.n_reference_scores,
            alert_budget,
            self.config.calibration,
        )


def hash_household_ids(household_ids: list[str]) -> NDArray[np.int64]:
    """Return the first 8 bytes of each id's SHA-256 as a signed number, `[H]`.

    The same on every machine. The artefact holds whom a network was trained on by these, and the
    split into held-out households is drawn by them.
    """
    digests = (hashlib.sha256(household.encode()).digest() for household in household_ids)
    return np.array([int.from_bytes(digest[:8], signed=True) for digest in digests], dtype=np.int64)

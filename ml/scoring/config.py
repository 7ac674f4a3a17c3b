"""The numbers that turn network outputs into scores and flags, with unit, meaning and origin.

Stored with each model version and read from there when that version scores, as are those of levels
(`ml/fleet.py`), peers (`ml/peers.py`), reasons (`ml/explain/config.py`) and the network's features.
What a version does not hold: `SILENCE_NIGHTS`, one for all versions since episodes join their
alerts, and the settings `METERWATCH_MIN_READINGS` and `METERWATCH_ALERT_BUDGET`. "EXPERIMENTS" is
`tests/benchmarks/EXPERIMENTS.md`; "measured" figures there are of 27 households held out. Where no
sweep is recorded, the origin says "chosen" and why.
"""

from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from ml.episodes import SILENCE_NIGHTS

MAX_CONTEXT_NIGHTS: Final = 45
"""Most context nights that a network may ask for; scoring loads this many before the warm-up.

The history network asks for 45: it uses 42 in scoring, and in training the last of four nights that
share a history has three more before it. The score cache fingerprints this many nights, so a
network that asks for more is refused (`Detector`)."""


class RuleConfig(BaseModel):
    """Numbers of the two rules that join the network: repeated readings and zero readings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    zero_kwh: float = Field(
        5e-4,
        gt=0,
        description="kWh per half-hour; a reading at or below is zero. Half of the meters' "
        "resolution of 0.001 kWh.",
    )
    habit_nights: int = Field(
        28, ge=1, description="Nights before a night whose runs are the habit. As the level nights."
    )
    habit_rank: int = Field(
        3,
        ge=1,
        description="A run is compared with the household's n-th longest of the habit nights: with "
        "the third, a fault that has lasted two nights is not yet a habit. Chosen.",
    )
    run_offset: float = Field(
        2.0,
        gt=0,
        description="Half-hours added to both runs before their ratio, so that a run of 2 against "
        "one of 1 is no surprise. Chosen.",
    )


class CalibrationConfig(BaseModel):
    """Numbers of the tail distributions, the p-values and the alert threshold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    body_share: float = Field(
        0.98,
        gt=0,
        lt=1,
        description="Share of the calibration nights that is used by rank; an exponential tail is "
        "fitted beyond (Pickands 1975, shape 0), where the nights of a few odd households lie: 87 "
        "to 100 % of false alarms at 1 in 1,000 came from 3 households (docs/detector.md).",
    )
    body_size: int = Field(
        1025, ge=2, description="Quantiles that hold the body of a tail distribution. Chosen."
    )
    min_tail_scale: float = Field(
        1e-3, gt=0, description="Least scale of an exponential tail, so that it is never 0. Chosen."
    )
    max_reference_scores: int = Field(
        1 << 16,
        ge=1,
        description="Most scores kept as the reference of p-values; of more, as many evenly "
        "spread. Enough for the least p-value, 0.1 / 5,567, of a false-discovery rate of 0.1 over "
        "the trial's households (Benjamini-Hochberg).",
    )
    min_p_value: float = Field(
        1e-12,
        gt=0,
        description="Least p-value before tail inflation: 0 would have no logarithm. Chosen.",
    )
    alert_curve_steps: int = Field(
        97, ge=2, description="Points of the alert curve, about 24 for each factor of ten. Chosen."
    )
    max_alert_share: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="Greatest share of the calibration nights that the alert curve considers to "
        "flag. Chosen: far above any budget.",
    )
    min_expected_episodes: int = Field(
        5,
        ge=1,
        description="False alert episodes that the calibration nights have to hold at a budget "
        "before a threshold is taken from them: of fewer, the count says little (relative standard "
        "error 45 % at 5). Chosen.",
    )


class ScoringConfig(BaseModel):
    """Numbers that turn network outputs and rules into surprisal, evidence, scores and p-values.

    Surprisal is -log10 of a share, so 1 is 1 night in 10 and 3 is 1 in 1,000.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Standardize
    usual_error_nights: int = Field(
        28,
        ge=1,
        description="Nights before a night that give the household's usual error, for networks "
        "whose output is an error. Four weeks, as the level.",
    )
    peer_weight_nights: float = Field(
        4.0,
        ge=0,
        description="Nights that the peers' usual error weighs beside the household's own. Chosen.",
    )
    min_error_scale: float = Field(
        1e-3, gt=0, description="Least spread of an error, in its own unit, so that it is never 0."
    )
    min_households_for_shift: int = Field(
        20,
        ge=1,
        description="Households that a fleet shift needs: the median of fewer moves with one of "
        "them. Subtracting the shift was worth 0.006 AP (EXPERIMENTS row A2).",
    )

    # Rules that join the network
    rule_weight: float = Field(
        0.2,
        ge=0,
        description="Share of what the larger rule surprisal exceeds `unusual_surprisal` by that "
        "is added to the network's: 'plus a fifth', "
        "0.002 AP and 0.001 R@3; the maximum of both cost 0.024 AP (EXPERIMENTS rows A5, A6).",
    )
    max_rule_surprisal: float = Field(
        2.0,
        ge=0,
        description="Most surprisal beyond `unusual_surprisal` that a rule may bring in, before "
        "its weight: households that fall silent by habit are many. Chosen.",
    )

    # Corrections of a surprisal
    unusual_surprisal: float = Field(
        1.0, gt=0, description="From here on a night counts as unusual: 1 calibration night in 10."
    )
    extreme_surprisal: float = Field(
        3.0,
        gt=0,
        description="From here on a night is left out of base rates and tail inflation: it is what "
        "is looked for. 1 calibration night in 1,000.",
    )
    base_rate_nights: int = Field(
        28, ge=1, description="Nights before a night over which unusual nights are counted."
    )
    base_rate_prior_nights: float = Field(
        1.5,
        gt=0,
        description="Unusual nights that every household is taken to have had, which shrinks its "
        "base rate towards the fleet's. Chosen.",
    )
    base_rate_power: float = Field(
        1.5,
        ge=0,
        description="Power of the base rate in its penalty; 1 would divide the share by it. Above "
        "1, since few households make most false alarms (docs/detector.md). Chosen.",
    )
    cold_start_nights: float = Field(
        7.0,
        ge=0,
        description="Usable nights at which a new household's nights look about twice as rare as "
        "those of one with endless history. A week, as the benchmark's control of new meters has.",
    )
    established_nights: int = Field(
        28,
        ge=1,
        description="Usable nights from which on a household is not new: of the last "
        "`established_nights` for the cold-start penalty, of the last `history_nights` for the "
        "status `scored`. Four weeks.",
    )
    history_nights: int = Field(
        56,
        ge=1,
        description="Nights before a night in which usable ones are counted for the status.",
    )
    tail_inflation_nights: int = Field(
        14,
        ge=1,
        description="Nights before a night that give the tail inflation. A threshold frozen in "
        "August gave 29 to 52 times its target in autumn, taken again nightly 1.5 to 3 "
        "(docs/detector.md).",
    )
    tail_inflation_prior: float = Field(
        40.0,
        gt=0,
        description="Unusual household-nights that are taken to have been seen and expected, which "
        "shrinks the inflation of small fleets towards 1. Chosen.",
    )
    max_inflated_share: float = Field(
        0.5, gt=0, le=1, description="Most that the share of unusual nights is inflated to. Chosen."
    )

    # Evidence
    evidence_nights: int = Field(
        14,
        ge=1,
        description="Nights before a night that its evidence rests on: `SILENCE_NIGHTS` as well.",
    )
    evidence_decay: float = Field(
        0.7,
        gt=0,
        lt=1,
        description="Factor by which evidence falls a night; a CUSUM that does not decay keeps "
        "alarming after an anomaly has ended (EXPERIMENTS, last paragraph).",
    )
    evidence_drift: float = Field(
        1.0,
        description="Standard deviations subtracted from each night's normal score: what a night "
        "must exceed to add evidence (the CUSUM's allowance, Page 1954). Chosen.",
    )
    max_normal_score: float = Field(
        5.0,
        gt=0,
        description="Cap of a night's normal score, in standard deviations, before "
        "`evidence_drift` is subtracted. Chosen.",
    )
    evidence_share: float = Field(
        0.15,
        ge=0,
        description="Share of the evidence before a night that is added to its surprisal. A tenth "
        "gave 0.005 AP and 0.033 R@3 (EXPERIMENTS row A7); a seventh gave more R@3 "
        "on new households at no loss (commit 5c4b818).",
    )

    rules: RuleConfig = RuleConfig()
    calibration: CalibrationConfig = CalibrationConfig()

    @property
    def surprisal_lookback_nights(self) -> int:
        """Nights before a night that its surprisal looks back at: the rules' habit, cold start."""
        return max(self.rules.habit_nights, self.established_nights)

    @property
    def calibration_warmup_nights(self) -> int:
        """Nights before a night whose surprisal its flag, and whether it opens an episode, rest on.

        Its p-value rests on the p-values of the nights before (tail inflation), each of which rests
        on surprisals before (base rate). Whether an alert opens an episode, a figure of the table
        `nights`, rests on the alerts of the silence before it.
        """
        return SILENCE_NIGHTS + self.tail_inflation_nights + self.base_rate_nights

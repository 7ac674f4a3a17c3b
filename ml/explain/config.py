"""Every number that decides a reason or a span, with its unit, meaning and origin.

No sweep is recorded for any of them: they were chosen together with the rules (commits 0850b9d and
0f5ce37), and each description says why the size is what it is. The table of reasons given against
anomalies injected (`ml/evaluation/reason_confusion.py`) judges a change. "Excess" is actual less
expected kWh; "expected energy" is the sum of the expected profile.
"""

from typing import Final

from pydantic import BaseModel, ConfigDict, Field


class ReasonConfig(BaseModel):
    """Numbers of the rules that name a reason, and of the span that shows it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # The household's own nights
    context_nights: int = Field(
        42,
        ge=1,
        description="Nights before a night that say what the household usually does. As many as "
        "the history network is given, so that reason and score rest on the same nights; a "
        "majority of them is still ordinary after a fault of 14 nights. Chosen.",
    )
    min_expected_kwh: float = Field(
        1e-3,
        gt=0,
        description="Least kWh taken as the expected energy of a day, so that shares of it are "
        "never divided by 0. One step of the meters' resolution.",
    )

    # Outage
    outage_max_kwh: float = Field(
        0.002,
        ge=0,
        description="kWh per half-hour; a reading at or below counts as no consumption. Chosen: "
        "two steps of the meters' resolution (4 W), since a dead supply may still read a step or "
        "two, and the standing load of a household lies far above.",
    )
    outage_min_half_hours: int = Field(
        4,
        ge=1,
        description="Half-hours without consumption that make an outage: 2 hours. Chosen: long "
        "enough to tell in the energy of the day.",
    )
    outage_min_extra_half_hours: int = Field(
        3,
        ge=0,
        description="Half-hours by which the run must also exceed the household's usual longest "
        "run without consumption: 1.5 hours, so that households that read zero every night are "
        "not named for it. Chosen.",
    )
    outage_min_lost_share: float = Field(
        0.05,
        ge=0,
        description="Share of the expected energy that must be missing in those half-hours. "
        "Chosen: 4 of 48 half-hours at the mean hold 0.08, so an outage in quiet hours passes, "
        "one where nothing was expected does not.",
    )

    # Stuck
    stuck_min_half_hours: int = Field(
        10,
        ge=2,
        description="Half-hours that one reading must repeat: 5 hours. Chosen: real readings "
        "almost never repeat (docs/detector.md), but a steady standing load at a resolution of "
        "0.001 kWh may, for an hour or two.",
    )
    stuck_min_run_ratio: float = Field(
        3.0,
        gt=0,
        description="Times by which the run must exceed the household's usual longest run of one "
        "reading, since households with little but a standing load repeat by habit. Chosen.",
    )

    # Capped
    capped_min_readings: int = Field(
        3,
        ge=2,
        description="Half-hours that must read the day's highest value: two may coincide by "
        "chance at a resolution of 0.001 kWh, three hardly do. Chosen.",
    )
    capped_max_peak_ratio: float = Field(
        0.8,
        gt=0,
        description="Highest reading over the household's usual daily peak, below which the day "
        "is capped. Chosen: a limit at the usual peak would limit nothing.",
    )

    # Spike
    spike_min_peak_ratio: float = Field(
        1.3,
        gt=0,
        description="Reading over the household's usual high peak, above which a half-hour is a "
        "spike: 30 % above what the household does on a tenth of its nights. Chosen.",
    )
    spike_peak_quantile: float = Field(
        0.9,
        ge=0,
        le=1,
        description="Quantile of the context nights' daily peaks that stands for the usual high "
        "peak. Chosen: the maximum would be set by one earlier spike; the median is exceeded "
        "every second night.",
    )
    spike_max_half_hours: int = Field(
        3,
        ge=1,
        description="Most consecutive half-hours of a spike: 1.5 hours. Longer is a load that was "
        "added, a rise or a night load. Chosen.",
    )
    spike_min_excess_share: float = Field(
        0.1,
        ge=0,
        description="Share of the expected energy that the spikes' excess must exceed, so that a "
        "tall half-hour in a small day names it and one in a large day does not. Chosen.",
    )

    # Night load
    night_load_start_half_hour: int = Field(
        44, ge=0, lt=48, description="First half-hour of the night, 22:00 UTC. Chosen."
    )
    night_load_end_half_hour: int = Field(
        14,
        ge=0,
        le=48,
        description="Half-hour at which the night ends, 07:00 UTC. Chosen: before most breakfasts.",
    )
    night_load_min_rest_ratio: float = Field(
        2.0,
        ge=0,
        description="Times by which the night's excess must exceed the size of the excess by day: "
        "two thirds of the change lie at night. Chosen.",
    )
    night_load_min_deficit_ratio: float = Field(
        4.0,
        ge=0,
        description="Times by which the night's excess must exceed all that is missing anywhere, "
        "so that a shifted day, which adds at night what it takes by day, is not named a night "
        "load. Raised from 2 in commit 0f5ce37, with the test of shifted days.",
    )
    night_load_min_excess_share: float = Field(
        0.15,
        ge=0,
        description="Share of the expected energy that the night's excess must exceed: at 8 kWh a "
        "day 1.2 kWh, a heater of 130 W for 9 hours. Chosen.",
    )

    # Rise and drop
    level_change_ratio: float = Field(
        1.35,
        gt=1,
        description="Energy of the day over the expected one, above which it is a rise, and the "
        "inverse (0.74), below which it is a drop. Chosen: symmetric as a factor.",
    )

    # Shifted
    shift_min_half_hours: int = Field(
        3,
        ge=1,
        le=24,
        description="Least turn of the clock that is tried, earlier or later: 1.5 hours. Chosen: "
        "a clock change (1 hour) and late evenings move a day by less.",
    )
    smoothing_half_hours: int = Field(
        5,
        ge=1,
        description="Half-hours of the moving average before days are compared: 2.5 hours, so "
        "that a meal an hour later is no misfit. Chosen.",
    )
    shift_min_level_kwh: float = Field(
        0.02,
        gt=0,
        description="Least mean kWh per half-hour (40 W) that readings are divided by: below it, "
        "the logarithm would blow up the meters' resolution. Chosen.",
    )
    shift_own_variance_weight: float = Field(
        2.0,
        ge=0,
        description="Weight of a half-hour's own squared median absolute deviation in the "
        "variance that misfits are divided by. Near 1.4826 squared (2.2), which makes it the "
        "variance of normal errors. Chosen.",
    )
    shift_mean_variance_weight: float = Field(
        0.5,
        ge=0,
        description="Weight of the day's mean squared deviation in that variance: shrinks towards "
        "it, since few context nights leave a half-hour's own uncertain. Chosen.",
    )
    shift_min_variance: float = Field(
        0.0025,
        gt=0,
        description="Variance added to every half-hour, 0.05 squared in log(1 + kWh / level): 5 % "
        "of the level is no misfit even in a household that never varies. Chosen.",
    )
    shift_min_usual_misfit: float = Field(
        1.0,
        ge=0,
        description="Least misfit (sum of 48 squared errors over their variance) taken as usual "
        "for a context night: without context nights it is 0, and the limit would be too. Chosen.",
    )
    shift_max_misfit_ratio: float = Field(
        2.5,
        gt=0,
        description="Misfit over the usual one: the day as it stands must lie above, its best "
        "turn below. Chosen.",
    )
    shift_min_misfit_ratio: float = Field(
        2.0,
        gt=0,
        description="Times by which the misfit of the day as it stands must exceed that of its "
        "best turn; of 44 turns one fits a little better by chance. Chosen.",
    )

    # Span
    min_half_hour_score: float = Field(
        1.0,
        gt=0,
        description="Half-hour score above which a half-hour shows the anomaly: a span gains by "
        "what exceeds it and loses by what falls short. 1 is even odds, or the usual error of "
        "that half-hour (`score_half_hours`).",
    )


DEFAULT_REASON_CONFIG: Final = ReasonConfig()

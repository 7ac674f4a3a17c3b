"""The numbers of the history features, stored with each model version.

Weights are learned on features that were computed with these numbers, so a version that scores
must compute its features with the numbers that it was trained with. A version of release 0.1.0
stores none; it was trained with the defaults.

"Log units" below are the units of `to_log_readings`: 0 for no consumption, 1.44 at the household's
level, 3 at about 15 times it. "Chosen" numbers have the given reason and no recorded sweep.
"""

from pydantic import BaseModel, ConfigDict, Field


class HistoryFeatureConfig(BaseModel):
    """Thresholds, floors and bandwidths of `compute_history_features`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Which readings count, and in which units they are compared
    min_observed_half_hours: int = Field(
        24,
        ge=1,
        le=48,
        description="half-hours; a context night with fewer readings is replaced by another night "
        "and does not count for the level. Chosen: half a night still shows a profile",
    )
    min_level_kwh: float = Field(
        0.02,
        gt=0,
        description="kWh per half-hour (40 W); the least level readings are divided by, so that "
        "an empty home's meter noise does not look like peaks. Chosen: the load of a router",
    )
    reading_tolerance_kwh: float = Field(
        5e-4,
        gt=0,
        description="kWh; readings nearer than this are the same reading, below it they are zero. "
        "Half the resolution of a meter, 1 Wh",
    )
    log_floor_share: float = Field(
        0.1,
        gt=0,
        description="share of the level down to which the scale is logarithmic, below it linear, "
        "so that a lost baseload shows as well as a peak. EXPERIMENTS, row 'units that resolve "
        "a tenth of the level': lasting anomalies found within 7 nights 0.58 -> 0.64 against a "
        "whole level",
    )
    log_unit_scale: float = Field(
        0.6,
        gt=0,
        description="log units per natural logarithm. Chosen: readings come to about 0 to 3, the "
        "range in which a network learns well",
    )

    # Ranks and distances
    tie_width: float = Field(
        5e-3,
        gt=0,
        description="log units (about 1 % of a reading); values within half of it are partly "
        "above, partly below one another. A step in its place let the last bit of a figure "
        "change a score; with the ramp scoring engines agree within 3e-5 on every London night "
        "(commit 93a97ff)",
    )
    min_squared_distance: float = Field(
        1e-9,
        gt=0,
        description="squared log units; what a Gram matrix leaves below it is rounding. Chosen: a "
        "root of 3e-5, far below `distance_floor`",
    )
    distance_floor: float = Field(
        0.03,
        gt=0,
        description="log units; added to the usual distance among context nights before a "
        "distance is divided by it, so that a household whose nights are alike does not have "
        "endless ratios. Chosen",
    )
    half_hour_bandwidth: float = Field(
        0.08,
        gt=0,
        description="log units; distance by half-hour at which a context night weighs 1/e of an "
        "identical one in the neighbours' mean profile. Chosen: a few nearest nights weigh most",
    )
    coarse_bandwidth: float = Field(
        0.06,
        gt=0,
        description="log units; the same by distance of 90-minute means, which average out and so "
        "are smaller",
    )

    # Spreads that deviations are divided by, and limits
    half_hour_spread_floor: float = Field(
        0.12,
        gt=0,
        description="log units; added to a half-hour's standard deviation before a deviation is "
        "divided by it, since 14 to 42 nights may all be the same. Chosen: about 20 % of a "
        "reading",
    )
    night_spread_floor: float = Field(
        0.03,
        gt=0,
        description="the same for statistics of a profile, whose means over half-hours vary less "
        "(log units). Chosen",
    )
    norm_floor: float = Field(
        0.1,
        gt=0,
        description="squared log units; added to the product of two profiles' norms, so that flat "
        "profiles have no correlation in place of an arbitrary one. Chosen",
    )
    limit: float = Field(
        8.0,
        gt=0,
        description="z-scores and night features are clipped at plus and minus this, log ratios "
        "of distances at minus this, so that no single one dominates the network. Chosen: "
        "beyond it a night is extreme anyway",
    )

    # Figures of the profile and of exceedances
    high_z: float = Field(
        1.5,
        description="standard deviations; half-hours above it count as high. Chosen: 7 % of a "
        "normal distribution",
    )
    low_z: float = Field(
        -1.0,
        description="standard deviations; half-hours below it count as low. Chosen nearer to 0 "
        "than `high_z`, since consumption cannot fall as far as it can rise",
    )
    equal_step: float = Field(
        1e-6,
        gt=0,
        description="log units; a step from one half-hour to the next below it is none. Chosen: "
        "above the rounding of single precision, below a step of 1 Wh",
    )
    exceedance_z_scale: float = Field(
        4.0,
        gt=0,
        description="standard deviations per unit, so that z-scores have about the size of the "
        "other exceedances, which are in log units. Chosen",
    )
    exceedance_mean_gain: float = Field(
        3.0,
        gt=0,
        description="factor of mean exceedances, which most half-hours pull to 0, so that they "
        "have about the size of maxima. Chosen",
    )
    exceedance_log_gain: float = Field(
        20.0,
        gt=0,
        description="factor of the night's mean exceedance x inside log(1 + x), which resolves "
        "small exceedances from 1/20 log unit down. Chosen",
    )

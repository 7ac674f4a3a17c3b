"""The detector: one artefact that holds a network, its calibration and every number they use."""

import copy
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any, Final

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationInfo,
    field_validator,
    model_validator,
)
from torch import Tensor, nn

from ml.arrays import BoolArray, FloatArray
from ml.conditions import CONDITIONS
from ml.errors import UserError
from ml.explain.config import ReasonConfig
from ml.fleet import Fleet, LevelConfig
from ml.models import DEFAULT_MODEL, ModelName, import_network_class
from ml.models.base import (
    FIRST_RELEASE_SUBMODULES,
    NetworkConfig,
    NetworkFunction,
    Windows,
)
from ml.peers import PeerConfig
from ml.scoring.calibration import Calibration
from ml.scoring.config import MAX_CONTEXT_NIGHTS, ScoringConfig
from ml.scoring.network_pass import (
    FleetNetworkOutput,
    NetworkPass,
    compute_log_odds,
    run_network,
)

FIRST_RELEASE_STATE: Final = {
    "residual_scale": "calibration.half_hour_error_scale",
    "peer_center": "calibration.reference_center",
    "peer_scale": "calibration.reference_scale",
    "calibration": "calibration.reference_scores",
    "alerts": "calibration.alert_curve",
    "learnt": "calibration.training_household_hashes",
    "stands.body": "calibration.deviation_tail.body",
    "stands.scale": "calibration.deviation_tail.scale",
    "repeats.body": "calibration.repeated_readings_tail.body",
    "repeats.scale": "calibration.repeated_readings_tail.scale",
    "zeros.body": "calibration.zero_readings_tail.body",
    "zeros.scale": "calibration.zero_readings_tail.scale",
}
"""Names of a release 0.1.0 artefact's tensors, and what they are called now."""
FIRST_RELEASE_CONFIG: Final = frozenset({"calibration_size", "learnt_size"})
"""Fields of a release 0.1.0 configuration that nothing needs: the tensors have these sizes."""


class OtherInputsError(UserError):
    """A detector was made for other inputs than this release gives, so it cannot score."""


class DetectorConfig(BaseModel):
    """All that is needed to rebuild a detector before its tensors are loaded.

    A configuration that release 0.1.0 wrote holds none of the numbers and no names of features.
    Its numbers are today's defaults, which `tests/tasks/test_first_release_home.py` protects:
    whoever changes a default writes the old value into `_drop_first_release_fields`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelName = DEFAULT_MODEL
    network: SerializeAsAny[NetworkConfig] = Field({}, validate_default=True)
    conditions: tuple[str, ...] = Field(
        CONDITIONS, description="names and order of the conditions that the network is given"
    )
    features: dict[str, tuple[str, ...]] | None = Field(
        None, description="names and order of the network's other inputs; of release 0.1.0, none"
    )
    level: LevelConfig = LevelConfig()
    peers: PeerConfig = PeerConfig()
    scoring: ScoringConfig = ScoringConfig()
    reasons: ReasonConfig = ReasonConfig()

    @model_validator(mode="before")
    @classmethod
    def _drop_first_release_fields(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Return the fields without the sizes that release 0.1.0 wrote and nothing needs."""
        return {name: value for name, value in fields.items() if name not in FIRST_RELEASE_CONFIG}

    @field_validator("network", mode="before")
    @classmethod
    def _parse_network_config(cls, value: object, info: ValidationInfo) -> NetworkConfig:
        """Read the network's sizes as its model names them; its own where none are given."""
        return import_network_class(info.data["model"]).config_class.model_validate(value)


class Detector(nn.Module):
    """A network and its calibration.

    All figures are parameters or buffers and travel along; all settings are in `config`.

    Raises:
        OtherInputsError: the network wants other conditions, features or context nights than this
            release gives it.
    """

    def __init__(
        self, config: DetectorConfig, n_reference_scores: int = 0, n_training_households: int = 0
    ) -> None:
        super().__init__()
        network_class = import_network_class(config.model)
        self.network = network_class(config.network)
        feature_names = self.network.feature_names()
        refuse_other_inputs(config, feature_names, network_class.context_nights)
        self.config = config.model_copy(update={"features": feature_names})
        self.calibration = Calibration(
            config.scoring, network_class.score_kind, n_reference_scores, n_training_households
        )
        self.exported_program: NetworkFunction | None = None

    @classmethod
    def from_state(cls, config: DetectorConfig, state: Mapping[str, Tensor]) -> "Detector":
        """Rebuild a detector from its configuration and tensors, of this or an earlier release.

        Raises:
            UserError: it wants other inputs than this release gives, or tensors do not fit.
        """
        renamed = {_present_state_name(name): value for name, value in state.items()}
        detector = cls(
            config,
            n_reference_scores=len(renamed["calibration.reference_scores"]),
            n_training_households=len(renamed["calibration.training_household_hashes"]),
        )
        try:
            detector.load_state_dict(renamed)
        except RuntimeError as error:
            line = " ".join(str(error).split())
            raise UserError(f"the tensors do not fit the model {config.model}: {line}") from None
        return detector.eval()

    @property
    def scoring_function(self) -> NetworkFunction:
        """What computes network outputs when scoring.

        The exported program that stands in for the network, if any; otherwise a copy of the network
        in double precision, so that a result stored in single does not depend on which household-
        nights share a batch.
        """
        return self.exported_program or copy.deepcopy(self.network).double().eval()

    def forward(self, kwh: Tensor, level: Tensor, conditions: Tensor) -> tuple[Tensor, ...]:
        """Return the fields of `NetworkOutput` for those of `Windows`, as bare tensors."""
        return tuple(self.network(Windows(kwh, level, conditions)))

    def run_network(self, fleet: Fleet, nights: slice, min_readings: int) -> FleetNetworkOutput:
        """Return expected profiles and log odds of the fleet's `nights`, from all before them."""
        return run_network(self._network_pass(min_readings), fleet, nights)

    def calibrate(
        self,
        fleet: Fleet,
        n_nights: int,
        min_readings: int,
        training_household_ids: list[str] | None = None,
    ) -> None:
        """Fit the calibration on the last `n_nights` of households that no network learned from.

        The nights before give them their warm-up. `training_household_ids` are the households that
        it did learn from: they are told apart when nights are scored.
        """
        output = self.run_network(fleet, slice(None), min_readings)
        self.calibration.fit(output, fleet, n_nights, min_readings, training_household_ids or [])

    def compute_log_odds(self, fleet: Fleet, is_wanted: BoolArray, min_readings: int) -> FloatArray:
        """Return the log odds `[H, D]` of the wanted nights `[D]`, NaN elsewhere."""
        return compute_log_odds(self._network_pass(min_readings), fleet, is_wanted)

    def _network_pass(self, min_readings: int) -> NetworkPass:
        return NetworkPass(
            network=self.network,
            scoring_function=self.scoring_function,
            min_readings=min_readings,
            level_config=self.config.level,
            peer_config=self.config.peers,
        )


def _present_state_name(name: str) -> str:
    """Return what a tensor of this or an earlier release is called now."""
    for former, present in FIRST_RELEASE_SUBMODULES.items():
        if name.startswith(former):
            return present + name.removeprefix(former)
    return FIRST_RELEASE_STATE.get(name, name)


def refuse_other_inputs(
    config: DetectorConfig, feature_names: dict[str, tuple[str, ...]], context_nights: int
) -> None:
    """Raise if a detector was made for other inputs than this release gives it.

    Raises:
        OtherInputsError: which conditions or features differ, or that scoring loads too few nights.
    """
    stored: dict[str, tuple[str, ...]] = {"condition": config.conditions}
    current: dict[str, tuple[str, ...]] = {"condition": CONDITIONS}
    if config.features is not None:
        stored |= config.features
        current |= feature_names
    for kind in sorted(stored.keys() | current.keys()):
        difference = _describe_difference(kind, stored.get(kind, ()), current.get(kind, ()))
        if difference:
            raise OtherInputsError(f"{difference}: retrain with `meterwatch train`")
    if context_nights > MAX_CONTEXT_NIGHTS:
        raise OtherInputsError(
            f"the model {config.model} needs {context_nights} context nights, scoring loads "
            f"{MAX_CONTEXT_NIGHTS}: raise MAX_CONTEXT_NIGHTS in ml/scoring/config.py"
        )


def _describe_difference(
    kind: str, stored: tuple[str, ...], current: tuple[str, ...]
) -> str | None:
    """Return in words where two lists of input names first differ, None if they are equal."""
    for place, (trained_on, now) in enumerate(zip_longest(stored, current), start=1):
        if trained_on != now:
            return (
                f"the model was trained on other {kind} inputs than this release computes: "
                f"number {place} is {trained_on or 'none'} there and {now or 'none'} here"
            )
    return None

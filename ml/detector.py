"""One artefact: the network with its scales, and the calibration of its scores."""

import copy
from typing import Final

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationInfo,
    field_validator,
)
from torch import Tensor, nn

from ml.calibration import ALERT_CURVE_STEPS, TailDistribution
from ml.conditions import CONDITIONS
from ml.models import DEFAULT_MODEL, ModelName, import_network_class
from ml.models.base import NetworkConfig, NetworkFunction, NetworkOutput, Windows
from ml.schemas import HALF_HOURS

CALIBRATION_SIZE: Final = 1 << 16


class DetectorConfig(BaseModel):
    """All that is needed to rebuild a detector before its weights are loaded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelName = DEFAULT_MODEL
    network: SerializeAsAny[NetworkConfig] = Field({}, validate_default=True)
    conditions: tuple[str, ...] = Field(CONDITIONS, description="what the network is told")
    calibration_size: int = Field(0, ge=0, description="household-nights of the calibration")
    n_training_households: int = Field(
        0, ge=0, description="households that the network learnt from"
    )

    @field_validator("network", mode="before")
    @classmethod
    def _parse_network_config(cls, given: object, info: ValidationInfo) -> NetworkConfig:
        """Sizes as the model names them, its own where none are given."""
        return import_network_class(info.data["model"]).config_class.model_validate(given)


class Detector(nn.Module):
    """A network and the calibration of its scores; every figure is a buffer and travels along.

    The buffers hold what training and calibration saw and are never taken from a scored batch.
    """

    half_hour_error_scale: Tensor
    peer_center: Tensor
    peer_scale: Tensor
    reference_scores: Tensor
    """Rarities `[N]` of ordinary household-nights, sorted: the conformal reference."""
    alert_curve: Tensor
    """`[T, 3]` what `alert_curve` found."""
    training_household_hashes: Tensor
    """Identities of the households that the network learnt from."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.network = import_network_class(config.model)(config.network)
        self.program: NetworkFunction | None = None
        self.deviation_tail, self.repeated_readings_tail, self.zero_readings_tail = (
            TailDistribution(),
            TailDistribution(),
            TailDistribution(),
        )
        self.register_buffer("half_hour_error_scale", torch.ones(HALF_HOURS))
        self.register_buffer("peer_center", torch.zeros(()))
        self.register_buffer("peer_scale", torch.ones(()))
        self.register_buffer("reference_scores", torch.zeros(config.calibration_size).double())
        self.register_buffer("alert_curve", torch.zeros(ALERT_CURVE_STEPS, 3).double())
        self.register_buffer(
            "training_household_hashes",
            torch.zeros(config.n_training_households, dtype=torch.int64),
        )

    def fit_reference_scores(self, scores: Tensor) -> None:
        """Keep the rarities `[N]` of ordinary household-nights, sorted, as a conformal reference.

        Of more than `CALIBRATION_SIZE`, as many evenly spread.
        """
        kept = scores.double().sort().values
        if len(kept) > CALIBRATION_SIZE:
            places = torch.linspace(0, len(kept) - 1, CALIBRATION_SIZE, dtype=torch.float64)
            kept = kept[places.round().long()]
        self.reference_scores = kept
        self.config = self.config.model_copy(update={"calibration_size": len(kept)})

    def set_training_households(self, household_hashes: Tensor) -> None:
        """Keep whom the network learnt from, `[N]`."""
        self.training_household_hashes = household_hashes.sort().values
        self.config = self.config.model_copy(
            update={"n_training_households": len(household_hashes)}
        )

    def scoring_function(self) -> NetworkFunction:
        """What judges nights when scoring: the program that stands in for the network, if any.

        Otherwise the network in double precision, so that a result in single does not depend on
        which rows share a batch.
        """
        return self.program or copy.deepcopy(self.network).double().eval()

    def forward(self, kwh: Tensor, level: Tensor, conditions: Tensor) -> tuple[Tensor, ...]:
        """What the network makes of `Windows`, as bare tensors in and out: `Judged`."""
        judged: NetworkOutput = self.network(Windows(kwh, level, conditions))
        return tuple(judged)

"""Where household-nights lie in what a network makes of them, as a plane."""

import copy
from dataclasses import dataclass
from datetime import date
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from ml.arrays import FloatArray
from ml.fleet import Fleet
from ml.models.base import Network
from ml.training.split import select_evenly, usable_household_nights
from ml.windows import FleetWindows

PLOTTED_NIGHTS: Final = 4000


@dataclass(frozen=True)
class LatentPlane:
    """Household-nights by their place in a network's latent space."""

    points: FloatArray
    """`[N, 2]`"""
    axis_labels: tuple[str, str]
    nights: list[date]
    affluence: FloatArray
    """`[N]` of the Acorn group, as among the conditions; NaN where unknown."""


def compute_latent_plane(network: Network, fleet: Fleet, min_readings: int) -> LatentPlane:
    """A few thousand household-nights of a fleet, evenly spread.

    Of more than two dimensions the first two principal components (Pearson 1901).
    """
    places = select_evenly(usable_household_nights(fleet, min_readings), PLOTTED_NIGHTS)
    points, axes = _project_to_plane(
        _compute_latent(network, FleetWindows(fleet, network.context_nights, min_readings), places)
    )
    h, d = np.unravel_index(places.numpy(), fleet.n_readings.shape)
    return LatentPlane(
        points=points,
        axis_labels=axes,
        nights=[fleet.nights[night] for night in d],
        affluence=fleet.get_condition("affluence")[h, d],
    )


@torch.inference_mode()
def _compute_latent(
    network: Network, windows: FleetWindows, indices: torch.Tensor
) -> NDArray[np.float32]:
    seen = copy.deepcopy(network).eval()
    parts = (
        seen.compute_latent(windows.gather_windows(part))
        for part in torch.split(indices, network.scoring_batch_size)
    )
    return torch.cat(list(parts)).numpy()


def _project_to_plane(latent: NDArray[np.float32]) -> tuple[FloatArray, tuple[str, str]]:
    if latent.shape[1] == 2:
        return latent, ("first latent", "second latent")
    pca = PCA(n_components=2, random_state=0)
    points = pca.fit_transform(latent)
    first, second = pca.explained_variance_ratio_
    return points, (
        f"first principal component ({first:.0%} of the variance)",
        f"second ({second:.0%})",
    )

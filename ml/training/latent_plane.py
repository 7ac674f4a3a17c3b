"""The latent space of a network as a plane of household-nights."""

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
"""Household-nights that are drawn at most. Chosen: more overlap in a picture."""


@dataclass(frozen=True)
class LatentPlane:
    """Household-nights by their position in a network's latent space."""

    points: FloatArray
    """`[N, 2]`"""
    axis_labels: tuple[str, str]
    nights: list[date]
    """`[N]`"""
    affluence: FloatArray
    """`[N]` of the household's Acorn group, as among the conditions; NaN where unknown."""


def compute_latent_plane(network: Network, fleet: Fleet, min_readings: int) -> LatentPlane:
    """Return up to `PLOTTED_NIGHTS` usable household-nights of a fleet in the latent plane.

    Evenly spread over the fleet. Of a latent space of more than two dimensions the plane of the
    first two principal components (Pearson 1901).
    """
    indices = select_evenly(usable_household_nights(fleet, min_readings), PLOTTED_NIGHTS)
    windows = FleetWindows(fleet, network.context_nights, min_readings)
    points, axis_labels = _project_to_plane(_compute_latent(network, windows, indices))
    household, night = np.unravel_index(indices.numpy(), fleet.n_readings.shape)
    return LatentPlane(
        points=points,
        axis_labels=axis_labels,
        nights=[fleet.nights[each] for each in night],
        affluence=fleet.get_condition("affluence")[household, night],
    )


@torch.inference_mode()
def _compute_latent(
    network: Network, windows: FleetWindows, indices: torch.Tensor
) -> NDArray[np.float32]:
    # A copy, since `eval` would change the caller's network.
    evaluated = copy.deepcopy(network).eval()
    parts = (
        evaluated.compute_latent(windows.gather_windows(part))
        for part in torch.split(indices, network.scoring_batch_size)
    )
    return torch.cat(list(parts)).numpy()


def _project_to_plane(latent: NDArray[np.float32]) -> tuple[FloatArray, tuple[str, str]]:
    """Return `[N, n]` as `[N, 2]`, and what its axes are."""
    if latent.shape[1] == 2:
        return latent, ("first latent", "second latent")
    # The state seeds the randomised solver that scikit-learn takes for wide data.
    pca = PCA(n_components=2, random_state=0)
    points = pca.fit_transform(latent)
    first, second = pca.explained_variance_ratio_
    return points, (
        f"first principal component ({first:.0%} of the variance)",
        f"second ({second:.0%})",
    )

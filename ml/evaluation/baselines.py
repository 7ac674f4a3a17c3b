"""Published detectors from PyOD and stumpy, on profiles in units of the household's level.

Both libraries are imported only when a baseline is asked for: they belong to the development
environment.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

import numpy as np

from ml.arrays import FloatArray
from ml.errors import UserError
from ml.fleet import LEVEL_NIGHTS, Fleet, usual_levels_kwh

MATRIX_PROFILE: Final = "matrix_profile"


@dataclass(frozen=True)
class PyodDetector:
    """A detector of PyOD and how it is fitted."""

    module: str
    """Below `pyod.models`."""
    class_name: str
    options: Mapping[str, Any]
    """Arguments of the class; others are PyOD's defaults."""
    max_profiles: int
    """Most household-nights that it is fitted to. Chosen by what each takes: on 300,000 nights kNN
    took 257 s and GMM 280 s, the forest 2 s."""
    is_seeded: bool = False
    """Whether it takes `random_state`."""


PYOD_DETECTORS: Final[Mapping[str, PyodDetector]] = {
    "isolation_forest": PyodDetector(
        "iforest", "IForest", {"n_estimators": 200}, 50_000, is_seeded=True
    ),
    "ecod": PyodDetector("ecod", "ECOD", {}, 20_000),
    "pca": PyodDetector("pca", "PCA", {"n_components": 8, "n_selected_components": 8}, 50_000),
    "knn": PyodDetector("knn", "KNN", {"n_neighbors": 5}, 10_000),
    "gmm": PyodDetector("gmm", "GMM", {"n_components": 8, "max_iter": 500}, 20_000, is_seeded=True),
    "plain_autoencoder": PyodDetector(
        "auto_encoder", "AutoEncoder", {"verbose": 0}, 20_000, is_seeded=True
    ),
}
"""Detectors by the name of their row in the benchmark."""
BASELINES: Final = (*PYOD_DETECTORS, MATRIX_PROFILE)


class MissingLibraryError(UserError):
    """A baseline's library is not installed."""


def fit_baseline(
    name: str, fleet: Fleet, *, seed: int, min_readings: int
) -> Callable[[Fleet], FloatArray]:
    """Fit a baseline to a fleet's usable nights and return what scores another fleet, `[H, D]`.

    A score is higher where a night is more anomalous, NaN with fewer than `min_readings`.

    Raises:
        MissingLibraryError: the baseline's library is not installed.
    """
    if name == MATRIX_PROFILE:
        _import_library("stumpy")
        return lambda other: compute_matrix_profile(other, min_readings)
    chosen = PYOD_DETECTORS[name]
    seed_option = {"random_state": seed} if chosen.is_seeded else {}
    library = _import_library(f"pyod.models.{chosen.module}")
    detector = getattr(library, chosen.class_name)(**chosen.options, **seed_option)
    profiles, _ = _collect_usable_profiles(fleet, min_readings)
    random = np.random.default_rng(seed)
    detector.fit(profiles[random.permutation(len(profiles))[: chosen.max_profiles]])
    return lambda other: _score_usable_profiles(detector, other, min_readings)


def compute_matrix_profile(fleet: Fleet, min_readings: int) -> FloatArray:
    """Return the matrix profile of each night `[H, D]` against the 28 nights before it alone.

    The least z-normalised distance of the night's 48 readings to any 48 in a row (Yeh et al.
    2016). A missing reading is taken to be the mean of the 28 nights, since one NaN would leave the
    night without a score.
    """
    mass = _import_library("stumpy").mass
    score = np.full(fleet.kwh.shape[:2], np.nan)
    is_usable = fleet.n_readings >= min_readings
    is_usable[:, :LEVEL_NIGHTS] = False
    for h, d in zip(*np.nonzero(is_usable), strict=True):
        window = fleet.kwh[h, d - LEVEL_NIGHTS : d + 1].astype(np.float64)
        if np.isfinite(window[:-1]).any():
            gapless = np.where(np.isfinite(window), window, np.nanmean(window[:-1]))
            score[h, d] = mass(gapless[-1], gapless[:-1].ravel()).min()
    return score


def _collect_usable_profiles(fleet: Fleet, min_readings: int) -> tuple[FloatArray, tuple[Any, ...]]:
    """Return log(1 + kWh / level) of usable nights `[N, 48]`, and their places `(h, d)`.

    A missing reading is filled with the night's mean: PyOD takes no NaN.
    """
    places = np.nonzero(fleet.n_readings >= min_readings)
    level_kwh = usual_levels_kwh(fleet, min_readings)
    log_readings = np.log1p(fleet.kwh[places] / level_kwh[places][:, None]).astype(np.float64)
    nightly_mean = np.nanmean(log_readings, axis=1, keepdims=True)
    return np.where(np.isfinite(log_readings), log_readings, nightly_mean), places


def _score_usable_profiles(detector: Any, fleet: Fleet, min_readings: int) -> FloatArray:
    profiles, places = _collect_usable_profiles(fleet, min_readings)
    score = np.full(fleet.kwh.shape[:2], np.nan)
    score[places] = detector.decision_function(profiles)
    return score


def _import_library(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise MissingLibraryError(
            f"{error.name} is not installed; `make setup` installs it"
        ) from None

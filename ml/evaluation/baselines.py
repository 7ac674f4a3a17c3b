"""Published detectors from PyOD and stumpy, on household-scaled days.

Both are imported only when a peer is asked for: they belong to the development environment.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Final

import numpy as np

from ml.arrays import FloatArray
from ml.errors import UserError
from ml.fleet import LEVEL_NIGHTS, Fleet, scale_fleet

MATRIX_PROFILE: Final = "matrix_profile"
# Module, class, what it is given, and the most household-days it learns from.
PYOD_DETECTORS: Final[Mapping[str, tuple[str, str, Mapping[str, Any], int]]] = {
    "isolation_forest": ("iforest", "IForest", {"n_estimators": 200}, 50_000),
    "ecod": ("ecod", "ECOD", {}, 20_000),
    "pca": ("pca", "PCA", {"n_components": 8, "n_selected_components": 8}, 50_000),
    "knn": ("knn", "KNN", {"n_neighbors": 5}, 10_000),
    "gmm": ("gmm", "GMM", {"n_components": 8, "max_iter": 500}, 20_000),
    "plain_autoencoder": ("auto_encoder", "AutoEncoder", {"verbose": 0}, 20_000),
}
BASELINES: Final = (*PYOD_DETECTORS, MATRIX_PROFILE)
SEEDED_BASELINES: Final = ("isolation_forest", "gmm", "plain_autoencoder")


class MissingLibraryError(UserError):
    """A peer's library is not installed."""


def fit_baseline(
    name: str, fleet: Fleet, *, seed: int, min_readings: int
) -> Callable[[Fleet], FloatArray]:
    """Fit a peer to a fleet's usable household-days; what it then makes of another fleet `[H, D]`.

    Raises:
        MissingLibraryError: the peer's library is not installed.
    """
    if name == MATRIX_PROFILE:
        _import_library("stumpy")
        return lambda other: compute_matrix_profile(other, min_readings)
    module, kind, options, most = PYOD_DETECTORS[name]
    state = {"random_state": seed} if name in SEEDED_BASELINES else {}
    detector = getattr(_import_library(f"pyod.models.{module}"), kind)(**options, **state)
    days, _ = _collect_usable_profiles(fleet, min_readings)
    random = np.random.default_rng(seed)
    detector.fit(days[random.permutation(len(days))[:most]])
    return lambda other: _score_usable_profiles(detector, other, min_readings)


def compute_matrix_profile(fleet: Fleet, min_readings: int) -> FloatArray:
    """Matrix profile of each night `[H, D]` against the 28 nights before it alone.

    The least z-normalised distance of the night's 48 readings to any 48 in a row (Yeh et al.
    2016); a gap holds the mean of the 28 nights.
    """
    mass = _import_library("stumpy").mass
    score = np.full(fleet.kwh.shape[:2], np.nan)
    usable = fleet.n_readings >= min_readings
    usable[:, :LEVEL_NIGHTS] = False
    for household, night in zip(*np.nonzero(usable), strict=True):
        window = fleet.kwh[household, night - LEVEL_NIGHTS : night + 1].astype(np.float64)
        if np.isfinite(window[:-1]).any():
            gapless = np.where(np.isfinite(window), window, np.nanmean(window[:-1]))
            score[household, night] = mass(gapless[-1], gapless[:-1].ravel()).min()
    return score


def _collect_usable_profiles(fleet: Fleet, min_readings: int) -> tuple[FloatArray, tuple[Any, ...]]:
    """Usable household-days in log level units `[N, 48]`, gaps at the day's mean, and places."""
    places = np.nonzero(fleet.n_readings >= min_readings)
    days = scale_fleet(fleet, min_readings).log_readings[places].astype(np.float64)
    return np.where(np.isfinite(days), days, np.nanmean(days, axis=1, keepdims=True)), places


def _score_usable_profiles(detector: Any, fleet: Fleet, min_readings: int) -> FloatArray:
    days, places = _collect_usable_profiles(fleet, min_readings)
    score = np.full(fleet.kwh.shape[:2], np.nan)
    score[places] = detector.decision_function(days)
    return score


def _import_library(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise MissingLibraryError(
            f"{error.name} is not installed; `make setup` installs it"
        ) from None

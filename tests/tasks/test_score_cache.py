"""Cached scores are used only while everything that they rest on is the same."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from ml.fleet import Fleet
from ml.scoring.config import MAX_CONTEXT_NIGHTS
from ml.scoring.tables import CachedNights
from tasks import paths
from tasks.score_cache import ScoreCache
from tests import fleets

HOUSEHOLDS, NIGHTS = 3, MAX_CONTEXT_NIGHTS + 12
AFTER_CONTEXT = slice(MAX_CONTEXT_NIGHTS, None)


@pytest.fixture
def fleet(home: Path) -> Fleet:
    return fleets.build_fleet(fleets.simulate_readings_kwh(HOUSEHOLDS, NIGHTS))


@pytest.fixture
def log_odds(fleet: Fleet) -> np.ndarray:
    scores = np.random.default_rng(0).normal(size=(HOUSEHOLDS, NIGHTS)).astype(np.float32)
    scores[:, : MAX_CONTEXT_NIGHTS + 4] = np.nan
    scores[1, -1] = np.nan
    ScoreCache(fleet, "7", 36).store_scores(CachedNights(scores, scores.astype(np.float64) + 1))
    return scores


def test_stored_scores_are_loaded_unchanged(fleet: Fleet, log_odds: np.ndarray) -> None:
    np.testing.assert_array_equal(ScoreCache(fleet, "7", 36).load_scores().log_odds, log_odds)
    np.testing.assert_array_equal(
        ScoreCache(fleet, "7", 36).load_scores().surprisal, log_odds.astype(np.float64) + 1
    )


def test_later_window_reuses_scores_of_shared_nights(fleet: Fleet, log_odds: np.ndarray) -> None:
    later = fleets.build_fleet(fleet.kwh[:, 5:], fleets.FIRST_NIGHT + timedelta(days=5))
    found = ScoreCache(later, "7", 36).load_scores().log_odds
    np.testing.assert_array_equal(found[:, AFTER_CONTEXT], log_odds[:, 5:][:, AFTER_CONTEXT])


def test_changed_reading_invalidates_every_night_with_it_in_context(
    fleet: Fleet, log_odds: np.ndarray
) -> None:
    fleet.kwh[2, 10, 7] += 1
    found = ScoreCache(fleet, "7", 36).load_scores().log_odds
    assert np.isnan(found[:, : 10 + MAX_CONTEXT_NIGHTS + 1]).all()
    np.testing.assert_array_equal(
        found[:, 10 + MAX_CONTEXT_NIGHTS + 1 :], log_odds[:, 10 + MAX_CONTEXT_NIGHTS + 1 :]
    )


def test_cache_misses_for_other_version_or_min_readings(fleet: Fleet, log_odds: np.ndarray) -> None:
    assert np.isnan(ScoreCache(fleet, "8", 36).load_scores().log_odds).all()
    assert np.isnan(ScoreCache(fleet, "7", 30).load_scores().log_odds).all()


def test_cached_nights_are_not_rewritten(fleet: Fleet, log_odds: np.ndarray) -> None:
    files = sorted(paths.home_dir().rglob("score_cache.parquet"))
    stamps = [path.stat().st_mtime_ns for path in files]
    ScoreCache(fleet, "7", 36).store_scores(CachedNights(log_odds, log_odds.astype(np.float64) + 1))
    assert len(files) == 8
    assert [path.stat().st_mtime_ns for path in files] == stamps

"""The score cache: log odds and surprisal of nights, so that a nightly run computes one night.

It changes no result: a cached night is used only while its fingerprint, a digest of the model
version, the engine and every reading and condition that it rests on, is the same. The directory
may be deleted at any time.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl

from ml.fleet import Fleet
from ml.scoring.config import MAX_CONTEXT_NIGHTS
from ml.scoring.tables import CachedNights
from tasks import storage


class ScoreCache:
    """What is cached of a fleet's nights by one model version and engine."""

    def __init__(self, fleet: Fleet, scorer_id: str, min_readings: int) -> None:
        """Compute the fingerprints of a fleet's nights.

        `scorer_id` names the model version and the engine. The first `MAX_CONTEXT_NIGHTS` nights
        have none: not all that they rest on is in the fleet.
        """
        self.fleet = fleet
        of_fleet = f"{scorer_id} {min_readings} {fleet.household_ids}".encode()
        with ThreadPoolExecutor() as pool:
            digests = list(pool.map(self._digest_night, range(len(fleet.nights))))
        self.fingerprints = [
            hashlib.sha256(
                b"".join((of_fleet, *digests[place - MAX_CONTEXT_NIGHTS : place + 1]))
            ).hexdigest()
            for place in range(MAX_CONTEXT_NIGHTS, len(digests))
        ]

    def load_scores(self) -> CachedNights:
        """Return what is cached of the fleet's households and nights `[H, D]`, NaN elsewhere."""
        valid = storage.collect_with_retry(self._scan_cached_scores()).join(
            self._build_fingerprint_table(), on=("night", "fingerprint")
        )
        register = pl.DataFrame({"household_id": self.fleet.household_ids}).with_row_index("h")
        rows = valid.join(register, on="household_id")
        h = rows["h"].to_numpy()
        d = rows["d"].to_numpy()
        shape = self.fleet.kwh.shape[:2]
        cached = CachedNights(
            log_odds=np.full(shape, np.nan, np.float32), surprisal=np.full(shape, np.nan)
        )
        for name, values in cached._asdict().items():
            values[h, d] = rows[name].to_numpy()
        return cached

    def store_scores(self, scores: CachedNights) -> None:
        """Cache the nights `[H, D]` that have any log odds and are not cached yet."""
        has_scores = np.isfinite(scores.log_odds[:, MAX_CONTEXT_NIGHTS:]).any(axis=0)
        computed = self._build_fingerprint_table().filter(pl.Series(has_scores))
        cached = storage.collect_with_retry(
            self._scan_cached_scores().select("night", "fingerprint").unique()
        )
        missing = computed.join(cached, on=("night", "fingerprint"), how="anti")
        for night, place, fingerprint in missing.iter_rows():
            of_night = {name: values[:, place] for name, values in scores._asdict().items()}
            rows = pl.DataFrame({"household_id": self.fleet.household_ids, **of_night}).select(
                "household_id",
                pl.lit(night).alias("night"),
                pl.col("log_odds", "surprisal").fill_nan(None),
                pl.lit(fingerprint).alias("fingerprint"),
            )
            storage.cache_night_scores(night, rows)

    def _scan_cached_scores(self) -> pl.LazyFrame:
        """Scan what is cached of the fleet's nights, of whatever version and readings."""
        return storage.scan_nights("score_cache", self.fleet.nights[0], self.fleet.nights[-1])

    def _build_fingerprint_table(self) -> pl.DataFrame:
        """Return `night`, its place `d` in the fleet and its `fingerprint`, a row a night."""
        places = range(MAX_CONTEXT_NIGHTS, len(self.fleet.nights))
        nights = self.fleet.nights[MAX_CONTEXT_NIGHTS:]
        return pl.DataFrame({"night": nights, "d": places, "fingerprint": self.fingerprints})

    def _digest_night(self, night_index: int) -> bytes:
        """Return the SHA-256 of all readings and conditions of a night."""
        of_night = (
            self.fleet.kwh[:, night_index],
            self.fleet.conditions[self.fleet.condition_group, night_index],
        )
        return hashlib.sha256(b"".join(part.tobytes() for part in of_night)).digest()

"""What a version made of the nights that a night's scores rest on, so that it need not look again.

It changes no result: what is kept is found again only while the readings are the same.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl

from ml.fleet import Fleet
from ml.scoring.config import MAX_CONTEXT_NIGHTS
from ml.scoring.tables import CachedScores
from tasks import storage
from tasks.settings import get_settings


class ScoreCache:
    """What a version made of nights, as long as the readings that it saw are the same."""

    def __init__(self, fleet: Fleet, scorer_id: str) -> None:
        self.fleet = fleet
        seen = f"{scorer_id} {get_settings().min_readings} {fleet.household_ids}".encode()
        with ThreadPoolExecutor() as pool:
            nights = list(pool.map(self._digest_night, range(len(fleet.nights))))
        self.fingerprints = [
            hashlib.sha256(
                b"".join((seen, *nights[place - MAX_CONTEXT_NIGHTS : place + 1]))
            ).hexdigest()
            for place in range(MAX_CONTEXT_NIGHTS, len(nights))
        ]

    def load_scores(self) -> CachedScores:
        """What is known of the fleet's nights."""
        found = storage.collect_with_retry(self._scan_cached_scores()).join(
            self._build_fingerprint_table(), on=("night", "fingerprint")
        )
        register = pl.DataFrame({"household_id": self.fleet.household_ids}).with_row_index("h")
        placed = found.join(register, on="household_id")
        shape, place = self.fleet.kwh.shape[:2], (placed["h"].to_numpy(), placed["d"].to_numpy())
        known = CachedScores(np.full(shape, np.nan, np.float32), np.full(shape, np.nan))
        for name, values in known._asdict().items():
            values[place] = placed[name].to_numpy()
        return known

    def store_scores(self, scores: CachedScores) -> None:
        """Keep the nights of which anything is known and that are not kept."""
        found = np.isfinite(scores.log_odds[:, MAX_CONTEXT_NIGHTS:]).any(axis=0)
        keys = self._build_fingerprint_table().with_columns(any=pl.Series(found))
        kept = storage.collect_with_retry(
            self._scan_cached_scores().select("night", "fingerprint").unique()
        )
        wanted = keys.filter("any").join(kept, on=("night", "fingerprint"), how="anti")
        for night, fingerprint, place in wanted.select("night", "fingerprint", "d").iter_rows():
            of_night = {name: values[:, place] for name, values in scores._asdict().items()}
            frame = pl.DataFrame({"household_id": self.fleet.household_ids, **of_night}).select(
                "household_id",
                pl.lit(night).alias("night"),
                pl.col("log_odds", "surprisal").fill_nan(None),
                pl.lit(fingerprint).alias("fingerprint"),
            )
            storage.cache_night_scores(night, frame)

    def _scan_cached_scores(self) -> pl.LazyFrame:
        """What is kept of the fleet's nights, of whatever version and readings."""
        return storage.scan_nights("score_cache", self.fleet.nights[0], self.fleet.nights[-1])

    def _build_fingerprint_table(self) -> pl.DataFrame:
        """Each night with its place `d` and what its scores rest on."""
        places = range(MAX_CONTEXT_NIGHTS, len(self.fleet.nights))
        nights = self.fleet.nights[MAX_CONTEXT_NIGHTS:]
        return pl.DataFrame({"night": nights, "d": places, "fingerprint": self.fingerprints})

    def _digest_night(self, night_index: int) -> bytes:
        of_night = (
            self.fleet.kwh[:, night_index],
            self.fleet.conditions[self.fleet.condition_group, night_index],
        )
        return hashlib.sha256(b"".join(part.tobytes() for part in of_night)).digest()

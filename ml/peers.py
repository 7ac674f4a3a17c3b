"""Cold start: context nights of similar households in place of those that a new one lacks.

A household with few usable nights takes the missing ones from peers: households of its Acorn group
and tariff, those of the nearest level first and several in turn, so that no single peer's habit is
taken for its own. Their readings are scaled to its level.
"""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ml.arrays import FloatArray
from ml.fleet import Fleet, count_usable_nights


class PeerConfig(BaseModel):
    """Numbers of the choice of peers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_own_nights: int = Field(
        28,
        ge=0,
        description="Usable nights from which on a household takes none from peers. Four weeks.",
    )
    max_peers: int = Field(
        7,
        ge=1,
        description="Peers that fill one household's nights in turn. Chosen: one a weekday.",
    )
    other_group_level_ratio: float = Field(
        2.0,
        ge=1,
        description="A household of another Acorn group or tariff counts as far away as one whose "
        "level differs by this factor. Chosen.",
    )
    unknown_affluence: float = Field(
        9.0,
        description="Stands for an unknown Acorn group when groups are compared: any number that "
        "no group has (-1 to 1), since NaN would equal nothing.",
    )


DEFAULT_PEER_CONFIG: Final = PeerConfig()


class PeerImputer:
    """Fills the context nights that new households lack from their peers' nights."""

    def __init__(
        self,
        fleet: Fleet,
        level_kwh: FloatArray,
        context_nights: int,
        min_readings: int,
        config: PeerConfig = DEFAULT_PEER_CONFIG,
    ) -> None:
        """Find the new households of a fleet with usual levels `[H, D]`."""
        self.config = config
        self.kwh = fleet.kwh
        self.level_kwh = level_kwh
        self.context_nights = context_nights
        self.is_usable = fleet.n_readings >= min_readings
        self.n_usable_nights = count_usable_nights(fleet, context_nights, min_readings)
        self.is_new = self.n_usable_nights < min(config.min_own_nights, context_nights)
        # On a night on which every household is new nobody has nights to take.
        self.needs_peers = self.is_new & ~self.is_new.all(axis=0)
        self.price_signal = fleet.get_condition("price_signal")
        self.affluence = np.nan_to_num(
            fleet.get_condition("affluence")[:, 0], nan=config.unknown_affluence
        )

    def impute_windows(self, windows: Tensor, indices: Tensor) -> None:
        """Write peers' nights to the unusable context nights of new households, in place.

        `windows` `[N, context_nights + 1, 48]` of household-nights `[N]`, whose `indices` count
        through the fleet's `[H, D]`.
        """
        h, d = np.unravel_index(indices.numpy(), self.is_usable.shape)
        for row in np.flatnonzero(self.needs_peers[h, d]):
            self._impute_window(windows[row], int(h[row]), int(d[row]))

    def _impute_window(self, window: Tensor, household_index: int, night_index: int) -> None:
        """Fill the unusable context nights of a window `[context_nights + 1, 48]` in place.

        kWh, the oldest night first. The nearest peers take turns night by night, each scaled to the
        household's level. There is a peer, since `needs_peers` is false where all are new.
        """
        nights_ago = np.arange(self.context_nights, 0, -1)
        nights_ago = nights_ago[nights_ago <= night_index]
        nights_ago = nights_ago[~self.is_usable[household_index, night_index - nights_ago]]
        level_kwh = self.level_kwh[household_index, night_index]
        if not self.n_usable_nights[household_index, night_index]:
            # Without any night before, the level is the night's own and may be the anomaly.
            level_kwh = np.median(self.level_kwh[:, night_index])
        peers = self._select_nearest_peers(household_index, night_index, float(level_kwh))
        peer = peers[nights_ago % len(peers)]
        scale = level_kwh / self.level_kwh[peer, night_index]
        scaled_kwh = (self.kwh[peer, night_index - nights_ago] * scale[:, None]).astype(np.float32)
        window[torch.from_numpy(self.context_nights - nights_ago)] = torch.from_numpy(scaled_kwh)

    def _select_nearest_peers(
        self, household_index: int, night_index: int, level_kwh: float
    ) -> NDArray[np.int_]:
        """Return the places of households that are not new, the most similar first."""
        candidates = np.flatnonzero(~self.is_new[:, night_index])
        context = slice(max(0, night_index - self.context_nights), night_index + 1)
        has_price_signal = (self.price_signal[:, context] != 0).any(axis=1)
        group = np.stack((self.affluence, has_price_signal), axis=1)
        is_other_group = (group[candidates] != group[household_index]).any(axis=1)
        distance = np.abs(np.log(self.level_kwh[candidates, night_index] / level_kwh))
        distance += np.log(self.config.other_group_level_ratio) * is_other_group
        order = np.argsort(distance, kind="stable")
        nearest: NDArray[np.int_] = candidates[order[: self.config.max_peers]]
        return nearest

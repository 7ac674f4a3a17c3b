"""One pass of the network over household-nights, batch by batch, a thread a core."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ml.arrays import BoolArray, FloatArray, IntArray
from ml.fleet import Fleet, LevelConfig
from ml.models.base import Network, NetworkFunction, NetworkOutput
from ml.peers import PeerConfig
from ml.windows import FleetWindows

BatchOutput = tuple[tuple[IntArray, IntArray], NetworkOutput]
"""The places `(h, d)` of a batch in the fleet, and the network's output there."""


@dataclass(frozen=True)
class FleetNetworkOutput:
    """What the network makes of households and nights `[H, D]`; NaN for too few readings."""

    expected_kwh: NDArray[np.float32]
    """`[H, D, 48]` expected profile."""
    half_hour_log_odds: NDArray[np.float32]
    """`[H, D, 48]`, NaN where the reading is missing; of some networks an error."""
    log_odds: NDArray[np.float32]
    """`[H, D]` log odds of the night, not yet compared with anything; of some networks an error."""


@dataclass(frozen=True)
class NetworkPass:
    """What computes the output of household-nights, and what it is given."""

    network: Network
    scoring_function: NetworkFunction
    """The network itself or a program exported from it."""
    min_readings: int
    """Nights with fewer readings are not shown."""
    level_config: LevelConfig
    peer_config: PeerConfig


def run_network(network_pass: NetworkPass, fleet: Fleet, nights: slice) -> FleetNetworkOutput:
    """Return the network's output for the fleet's `nights`; those before are their context."""
    shape = fleet.kwh[:, nights].shape
    expected_kwh = np.full(shape, np.nan, dtype=np.float32)
    half_hour_log_odds = np.full(shape, np.nan, dtype=np.float32)
    log_odds = np.full(shape[:2], np.nan, dtype=np.float32)
    first = nights.indices(len(fleet.nights))[0]
    is_wanted = np.zeros(len(fleet.nights), dtype=np.bool_)
    is_wanted[nights] = True
    for (h, d), output in _iterate_batches(network_pass, fleet, is_wanted):
        expected_kwh[h, d - first] = output.expected_kwh.numpy()
        half_hour_log_odds[h, d - first] = output.half_hour_log_odds.numpy()
        log_odds[h, d - first] = output.log_odds.numpy()
    return FleetNetworkOutput(expected_kwh, half_hour_log_odds, log_odds)


def compute_log_odds(network_pass: NetworkPass, fleet: Fleet, is_wanted: BoolArray) -> FloatArray:
    """Return the log odds `[H, D]` of the wanted nights `[D]`, NaN elsewhere."""
    log_odds = np.full(fleet.kwh.shape[:2], np.nan, dtype=np.float32)
    for places, output in _iterate_batches(network_pass, fleet, is_wanted):
        log_odds[places] = output.log_odds.numpy()
    return log_odds


def _iterate_batches(
    network_pass: NetworkPass, fleet: Fleet, is_wanted: BoolArray
) -> Iterator[BatchOutput]:
    """Yield the output for all household-nights of wanted nights `[D]` with enough readings."""
    network = network_pass.network
    is_shown = (fleet.n_readings >= network_pass.min_readings) & is_wanted
    if not is_shown.any():
        return
    # Nights before the context and the level of the first wanted night would only cost memory.
    n_before = max(network.context_nights, network_pass.level_config.level_nights)
    start = max(0, int(is_wanted.argmax()) - n_before)
    is_shown = is_shown[:, start:]
    windows = FleetWindows(
        fleet.select_nights(start),
        network.context_nights,
        network_pass.min_readings,
        level_config=network_pass.level_config,
        peer_config=network_pass.peer_config,
    )

    def compute_batch(indices: Tensor) -> BatchOutput:
        """Return the places in the whole fleet of indices into `is_shown`, and the output there."""
        with torch.inference_mode():
            output = network_pass.scoring_function(windows.gather_windows(indices))
        h, d = np.unravel_index(indices.numpy(), is_shown.shape)
        return (h, d + start), output

    indices = torch.from_numpy(np.flatnonzero(is_shown))
    yield from _map_in_threads(compute_batch, torch.split(indices, network.scoring_batch_size))


def _map_in_threads(
    function: Callable[[Tensor], BatchOutput], batches: Sequence[Tensor]
) -> Iterator[BatchOutput]:
    """Yield a function's results for batches, in their order, by one thread a core.

    Each thread computes on one core: torch's own threads in small products cost more than they
    gain, and spin beside a busy neighbour.
    """
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(
            n_threads, initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            yield from pool.map(function, batches)
    finally:
        torch.set_num_threads(n_threads)

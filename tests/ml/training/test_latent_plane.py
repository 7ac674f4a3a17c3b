"""Every network can be looked at as a plane of household-nights."""

from datetime import timedelta

import numpy as np
import pytest
import torch

from ml.conditions import CONDITIONS
from ml.models import MODEL_NAMES
from ml.plots.training import draw_latent_plane
from ml.training.latent_plane import compute_latent_plane
from tests import fleets

HOUSEHOLDS, NIGHTS, MIN_READINGS = 3, 60, 36


@pytest.mark.parametrize("model", MODEL_NAMES)
def test_latent_does_not_depend_on_batch(model: str) -> None:
    """The latent of a night is the same whatever shares its batch, gaps or not."""
    kwh = fleets.simulate_readings_kwh(1, NIGHTS)
    kwh[0, -2, 4:9] = np.nan
    fleet = fleets.build_fleet(kwh)
    network = fleets.build_untrained_detector(fleet, model).network.double().eval()
    windows = fleets.build_windows(fleet, network.context_nights)
    batch = type(windows)(*(part[-5:].double() for part in windows))
    among = network.compute_latent(batch)
    alone = network.compute_latent(type(batch)(*(part[3:4] for part in batch)))
    assert among.shape[0] == 5
    assert torch.isfinite(among).all()
    torch.testing.assert_close(alone[0], among[3], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("model", [fleets.TEST_MODEL, "history_network"])
def test_latent_points_keep_nights_and_acorn_groups(model: str) -> None:
    kwh = fleets.simulate_readings_kwh(HOUSEHOLDS, NIGHTS)
    kwh[1, 7] = np.nan
    fleet = fleets.build_fleet(kwh)
    fleet.conditions[0, :, CONDITIONS.index("affluence")] = -1
    fleet.conditions[1, :, CONDITIONS.index("affluence")] = 1
    network = fleets.build_untrained_detector(fleet, model).network
    shown = compute_latent_plane(network, fleet, MIN_READINGS)
    assert shown.points.shape == (HOUSEHOLDS * NIGHTS - 1, 2)
    first = [fleets.FIRST_NIGHT + timedelta(days=day) for day in range(NIGHTS)]
    assert shown.nights == [*first, *first[:7], *first[8:], *first]
    affluence = np.repeat([-1, 1, np.nan], [NIGHTS, NIGHTS - 1, NIGHTS])
    np.testing.assert_array_equal(shown.affluence, affluence)
    names = [text.get_text() for text in draw_latent_plane(shown).axes[1].legend_.texts]
    assert names == ["affluent", "adversity", "unknown"]


def test_latent_plane_keeps_directions_of_largest_variance() -> None:
    """Two of the points' own directions explain as much as any two can."""
    fleet = fleets.build_fleet(fleets.simulate_readings_kwh(HOUSEHOLDS, NIGHTS))
    network = fleets.build_untrained_detector(fleet, "batchnorm_autoencoder").network.eval()
    with torch.inference_mode():
        latent = network.compute_latent(fleets.build_windows(fleet, 0)).double().numpy()
    variances = np.linalg.eigvalsh(np.cov(latent.T))[::-1]
    points = compute_latent_plane(network, fleet, MIN_READINGS).points
    np.testing.assert_allclose(points.var(axis=0, ddof=1), variances[:2], rtol=1e-3)

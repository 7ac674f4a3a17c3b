"""Windows are the same wherever they are gathered."""

import pytest
import torch

from ml.windows import FleetWindows
from tests import fleets

MIN_READINGS = 36


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_gpu_windows_equal_host_windows(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the GPU, or sent batch by batch where they do not fit."""
    monkeypatch.setattr("ml.windows.MAX_DEVICE_MEMORY_SHARE", share)
    fleet = fleets.build_fleet(fleets.simulate_readings_kwh(4, 60))
    indices = torch.arange(240)
    on_gpu, host = (FleetWindows(fleet, 45, MIN_READINGS) for _ in range(2))
    on_gpu.move_to_device(torch.device("cuda"))
    assert on_gpu.placement == ("device" if share else "streamed")
    for one, other in zip(
        on_gpu.gather_windows(indices), host.gather_windows(indices), strict=True
    ):
        assert one.is_cuda
        torch.testing.assert_close(one.cpu(), other, rtol=0, atol=0, equal_nan=True)

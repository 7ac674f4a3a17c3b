"""The environment follows London's clock."""

from datetime import date

import numpy as np
import pytest

from ml.simulation.environment import WAKING_DAY_HOURS, FleetConfig, build_environment


@pytest.mark.parametrize(
    ("start", "moves_by_hours"), [(date(2013, 3, 31), 1), (date(2013, 10, 27), -1)]
)
def test_daylight_moves_with_the_clock_change(start: date, moves_by_hours: int) -> None:
    environment = build_environment(FleetConfig(households=1, days=1, start=start))
    # Waking days: the Saturday before, the Sunday of the change, the Monday after.
    saturday, sunday, monday = (
        np.average(WAKING_DAY_HOURS, weights=1 - darkness) for darkness in environment.darkness
    )
    assert sunday - saturday == pytest.approx(moves_by_hours, abs=0.05)
    assert monday == pytest.approx(sunday, abs=0.05)

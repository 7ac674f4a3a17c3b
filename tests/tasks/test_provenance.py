"""A fleet's fingerprint tells its readings."""

import pytest

from tasks.provenance import fingerprint_fleet
from tests import fleets


@pytest.mark.seed_fault
def test_fleet_fingerprint_depends_on_readings() -> None:
    # The seed kept what it had computed under the shape of the array alone.
    one, other = (
        fleets.build_fleet(fleets.simulate_readings_kwh(3, 5, seed=1)),
        fleets.build_fleet(fleets.simulate_readings_kwh(3, 5, seed=2)),
    )
    assert fingerprint_fleet(one) != fingerprint_fleet(other)
    assert fingerprint_fleet(one) == fingerprint_fleet(
        fleets.build_fleet(fleets.simulate_readings_kwh(3, 5, seed=1))
    )

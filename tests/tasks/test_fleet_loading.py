"""A fleet is loaded with the households that reported."""

from pathlib import Path

import numpy as np

from tasks import storage
from tasks.fleet_loading import load_fleet
from tests import fleets
from tests.lake_fixtures import write_lake


def test_load_fleet_omits_households_without_readings(home: Path) -> None:
    kwh = fleets.simulate_readings_kwh(3, 4)
    kwh[1] = np.nan
    write_lake(kwh)
    fleet = load_fleet(*storage.read_night_range(), only_reporting=True)
    assert fleet.household_ids == ["MAC000000", "MAC000002"]
    assert fleet.kwh.shape == (2, 4, 48)

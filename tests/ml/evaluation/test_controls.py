"""Controls mark the nights on which a detector must stay quiet."""

import numpy as np

from ml.conditions import CONDITIONS
from ml.evaluation.controls import build_control_fleets, measure_control_alarms
from tests.evaluation_fixtures import (
    MIN_READINGS,
    NIGHTS,
    build_gappy_fleet,
    read_metric,
)


def test_control_fleets_mark_the_nights_of_each_control() -> None:
    fleet = build_gappy_fleet()
    known = fleet.conditions
    known[...] = 0
    known[:, 60:, CONDITIONS.index("is_summer_time")] = 1
    known[:, 70, CONDITIONS.index("is_day_off")] = 1
    known[:, [71, 72], CONDITIONS.index("is_day_off")] = 1
    known[:, [71, 72], CONDITIONS.index("is_saturday")] = 1
    known[2, 80, CONDITIONS.index("price_signal")] = 0.5
    fleet.kwh[3, 85:90] = 0.001
    real, snap, new, gappy = build_control_fleets(fleet, np.arange(8), NIGHTS, MIN_READINGS)
    places = {name: set(np.nonzero(nights)[1]) for name, nights in real.nights_by_control.items()}
    assert places["clock_change"] == {60}
    assert places["bank_holiday"] == {70}
    assert places["price_event"] == {80}
    assert places["absence"] == set(range(85, 90))
    assert not real.nights_by_control["absence"][[0, 1, 2]].any()
    span = snap.nights_by_control["cold_snap"].any(axis=0)
    np.testing.assert_allclose(snap.fleet.kwh[:, span], fleet.kwh[:, span] * 1.3, rtol=1e-5)
    np.testing.assert_array_equal(snap.fleet.kwh[:, ~span], fleet.kwh[:, ~span])
    assert np.isnan(new.fleet.kwh[::2, : NIGHTS.start - 7]).all()
    assert np.isfinite(new.fleet.kwh[1::2, : NIGHTS.start - 7]).all()
    assert new.nights_by_control["new_meter"].any(axis=0).argmax() == NIGHTS.start
    assert not new.nights_by_control["new_meter"][1::2].any()
    for count in (0, 2, 4, 8, 12):
        rows = gappy.fleet.kwh[gappy.nights_by_control[f"{count}_missing"]]
        assert len(rows) > 20
        assert (np.isnan(rows).sum(axis=1) >= count).all()
        assert np.median(np.isnan(rows).sum(axis=1)) == count
    loud = measure_control_alarms(
        [(real, np.where(real.nights_by_control["absence"], 1.0, 0.0))], threshold=1
    )
    assert read_metric(loud, "alarms_per_1000", "absence") == 1000
    assert read_metric(loud, "alarms_per_1000", "bank_holiday") == 0

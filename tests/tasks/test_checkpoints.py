"""A damaged checkpoint is passed over for an earlier one."""

from pathlib import Path

import pytest

from ml.training.fit import TrainerOptions, train_and_calibrate
from tasks.checkpoints import AtomicCheckpointIO, find_latest_checkpoint
from tests import fleets
from tests.training_fixtures import MIN_READINGS, build_quick_parameters, have_equal_weights


@pytest.mark.parametrize("damage", ["cut short", "one byte changed", "empty"])
def test_damaged_checkpoint_falls_back_to_earlier_one(damage: str, tmp_path: Path) -> None:
    fleet = fleets.build_fleet(fleets.simulate_readings_kwh(12, 60))
    undisturbed = train_and_calibrate(
        fleet,
        build_quick_parameters(),
        MIN_READINGS,
        str(tmp_path),
        options=TrainerOptions(checkpoint_io=AtomicCheckpointIO()),
    )
    last = tmp_path / "last.ckpt"
    content = bytearray(last.read_bytes())
    if damage == "cut short":
        del content[len(content) // 2 :]
    elif damage == "empty":
        content.clear()
    else:
        content[len(content) // 2] ^= 1
    last.write_bytes(content)
    earlier = find_latest_checkpoint(tmp_path)
    assert earlier == str(tmp_path / "epoch=1.ckpt")
    again = train_and_calibrate(
        fleet,
        build_quick_parameters(),
        MIN_READINGS,
        str(tmp_path),
        resume_from=earlier,
        options=TrainerOptions(checkpoint_io=AtomicCheckpointIO()),
    )
    assert have_equal_weights(again.detector.state_dict(), undisturbed.detector.state_dict())


def test_training_restarts_without_intact_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "last.ckpt").write_bytes(b"nothing of use")
    assert find_latest_checkpoint(tmp_path) is None
    assert not tmp_path.exists()
    assert "last.ckpt is damaged" in caplog.text

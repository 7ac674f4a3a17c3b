"""A detector is rebuilt from its artefact, and refused where its inputs have changed."""

import pytest
import torch

from ml.conditions import CONDITIONS
from ml.errors import UserError
from ml.models.history.network import HistoryNetwork
from ml.scoring.config import MAX_CONTEXT_NIGHTS, ScoringConfig
from ml.scoring.detector import FIRST_RELEASE_STATE, Detector, DetectorConfig
from tests import fleets


@pytest.fixture(scope="module")
def detector() -> Detector:
    fleet = fleets.build_fleet(fleets.simulate_readings_kwh(30, 70))
    return fleets.build_detector(fleet)


def rebuild(detector: Detector, config: DetectorConfig) -> Detector:
    written = DetectorConfig.model_validate_json(config.model_dump_json())
    return Detector.from_state(written, detector.state_dict())


def test_rebuilt_detector_has_the_same_tensors_and_numbers(detector: Detector) -> None:
    rebuilt = rebuild(detector, detector.config)
    assert rebuilt.config == detector.config
    for name, value in detector.state_dict().items():
        assert torch.equal(rebuilt.state_dict()[name], value), name


def test_version_is_scored_with_its_own_numbers(detector: Detector) -> None:
    scoring = ScoringConfig(evidence_share=0.3, min_households_for_shift=5)
    config = detector.config.model_copy(update={"scoring": scoring})
    assert rebuild(detector, config).calibration.config == scoring


def test_other_conditions_are_refused_in_one_line(detector: Detector) -> None:
    other = (*CONDITIONS[:3], "is_payday", *CONDITIONS[4:])
    config = detector.config.model_copy(update={"conditions": other})
    message = "other condition inputs .* number 4 is is_payday there and is_thursday here"
    with pytest.raises(UserError, match=message):
        rebuild(detector, config)


def test_other_features_are_refused_in_one_line() -> None:
    config = Detector(DetectorConfig(model="history_network")).config
    assert config.features is not None
    night = config.features["night"]
    features = config.features | {"night": (*night[:2], night[3], night[2], *night[4:])}
    with pytest.raises(UserError, match=f"other night inputs .* number 3 is {night[3]} there"):
        Detector(config.model_copy(update={"features": features}))


def test_network_that_wants_more_context_than_is_loaded_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(HistoryNetwork, "context_nights", MAX_CONTEXT_NIGHTS + 1)
    message = f"needs {MAX_CONTEXT_NIGHTS + 1} context nights, scoring loads {MAX_CONTEXT_NIGHTS}"
    with pytest.raises(UserError, match=message):
        Detector(DetectorConfig(model="history_network"))


def test_artefact_of_the_first_release_is_read(detector: Detector) -> None:
    former = {new: old for old, new in FIRST_RELEASE_STATE.items()}
    state = {
        former.get(name, name)
        .replace("network.reading_standardizer.", "network.readings.")
        .replace("network.condition_standardizer.", "network.conditions."): value
        for name, value in detector.state_dict().items()
    }
    fields = {
        "model": detector.config.model,
        "network": detector.config.network.model_dump(),
        "conditions": CONDITIONS,
        "calibration_size": 30,
        "learnt_size": 0,
    }
    rebuilt = Detector.from_state(DetectorConfig.model_validate(fields), state)
    reference = detector.calibration.reference_scores
    assert torch.equal(rebuilt.calibration.reference_scores, reference)


def test_tensors_of_another_network_are_refused_in_one_line(detector: Detector) -> None:
    state = {name: value for name, value in detector.state_dict().items() if "decoder" not in name}
    assert len(state) < len(detector.state_dict())
    with pytest.raises(UserError, match="tensors do not fit the model") as refusal:
        Detector.from_state(detector.config, state)
    assert "\n" not in str(refusal.value)

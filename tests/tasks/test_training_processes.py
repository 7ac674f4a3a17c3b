"""Data parallel processes are read from the environment, or launched one a device."""

import os

import pytest

from ml.training.parameters import SINGLE_PROCESS, TrainingProcesses
from tasks import training_processes
from tasks.training_processes import detect_training_processes, launch_training_processes


def test_process_outside_torchrun_trains_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(training_processes.LAUNCH_VARIABLE, raising=False)
    monkeypatch.setenv("RANK", "3")
    assert detect_training_processes() == SINGLE_PROCESS


def test_processes_on_two_machines_are_read_from_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(training_processes.LAUNCH_VARIABLE, "none")
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert detect_training_processes() == TrainingProcesses(rank=3, n_processes=4, n_machines=2)


def test_launched_processes_and_their_environment_end_with_the_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("METERWATCH_DEVICES", "2")
    monkeypatch.setenv("METERWATCH_THREADS", "1")
    launched = []

    class Worker:
        def __init__(self, command: tuple[str, ...], env: dict[str, str]) -> None:
            self.rank, self.address, self.is_alive = env["RANK"], env["MASTER_ADDR"], True
            launched.append(self)

        def kill(self) -> None:
            self.is_alive = False

        def wait(self) -> None:
            assert not self.is_alive

    monkeypatch.setattr(training_processes.subprocess, "Popen", Worker)
    before = dict(os.environ)
    with launch_training_processes("{}") as processes:
        assert processes == TrainingProcesses(rank=0, n_processes=2)
        assert [(each.rank, each.address) for each in launched] == [("1", "127.0.0.1")]
    assert not launched[0].is_alive
    assert dict(os.environ) == before

"""Child processes end with their block, and a server that does not start is reported."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.serving import processes
from ml.errors import UserError

pytestmark = pytest.mark.usefixtures("home")

STUBBORN_PARENT = """
import signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(60)
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_process_that_ignores_the_signal_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "STOP_TIMEOUT_S", 0.2)
    (tmp_path / "stubborn.py").write_text(STUBBORN_PARENT)
    environment = {"PYTHONPATH": str(tmp_path)}
    with processes.run_child_process("stubborn", "stubborn", env=environment) as process:
        deadline = time.monotonic() + 20
        while not (printed := processes.get_log_path("stubborn").read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert not is_running(process.pid)
    assert not is_running(int(printed))


def test_process_that_ends_early_is_reported_with_the_end_of_its_log() -> None:
    url = f"http://{processes.LOOPBACK}:{processes.find_free_port()}/health"
    with (
        processes.run_child_process("broken", "no_such_module", env={}) as process,
        pytest.raises(RuntimeError, match="broken did not start") as raised,
    ):
        processes.wait_until_healthy(url, process, "broken")
    assert "No module named no_such_module" in str(raised.value)


def test_process_that_never_answers_is_reported_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "START_TIMEOUT_S", 0.3)
    url = f"http://{processes.LOOPBACK}:{processes.find_free_port()}/health"
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    processes.get_log_path("silent").touch()
    try:
        with pytest.raises(RuntimeError, match="silent did not start"):
            processes.wait_until_healthy(url, process, "silent")
    finally:
        process.kill()
        process.wait()


def test_second_server_on_a_home_is_refused(home: Path) -> None:
    with (
        processes._lock_server(),
        pytest.raises(UserError, match=f"already runs on {home}"),
        processes._lock_server(),
    ):
        pass


def test_environment_of_runs_has_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METERWATCH_HOME", "data")
    environment = processes.build_environment("http://127.0.0.1:4200/api")
    assert environment["METERWATCH_HOME"] == str(tmp_path / "data")
    assert environment["METERWATCH_LANDING"] == str(tmp_path / "data/landing")
    assert environment["PREFECT_HOME"] == str(tmp_path / "data/prefect")
    assert environment["PATH"].split(":")[0] == str(Path(sys.executable).parent)

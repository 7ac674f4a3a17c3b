"""Child processes that end with this one, and the Prefect server as one of them.

Supervised here and not by a library: `prefect server start --background` leaves a process that
outlives a killed parent, and honcho and process-compose start all at once, while the deployments
must wait for the server and the workers for the deployments.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NoReturn

import httpx
from filelock import FileLock, Timeout
from tenacity import RetryError, Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from flows.environment import build_child_environment
from ml.errors import UserError
from tasks import paths
from tasks.settings import get_settings

LOOPBACK: Final = "127.0.0.1"
START_TIMEOUT_S: Final = 120
"""Longest wait for a server. Chosen: on a new database it takes 10 to 20 s on two idle cores."""
HEALTH_TIMEOUT_S: Final = 5
"""Longest wait for one answer. Chosen: a server that is up answers in milliseconds."""
HEALTH_INTERVAL_S: Final = 0.2
"""Pause between two questions. Chosen: a start is seen at once, and asking costs no core."""
STOP_TIMEOUT_S: Final = 20
"""Time for a process to end by itself before it is killed. Chosen: Prefect's services and a run's
task take seconds to stop."""
LOG_TAIL_CHARACTERS: Final = 2_000
"""End of a failed process's log that the error shows. Chosen: a traceback's last calls."""

SERVER_ENVIRONMENT: Final = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    # Without it the history of runs grows for good.
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    # In seconds; deploy.HEARTBEAT_TIMEOUT is three of them.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # MLflow's job runner starts workers of its own: 2.8 GB with it, 0.5 GB without.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}
"""Settings of the servers: nothing is sent elsewhere, and nothing grows without end."""


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt on the first Ctrl-C, SIGTERM or SIGHUP, and ignore further ones.

    A second Ctrl-C would else interrupt the clean-up and leave child processes behind.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def stop(*_: object) -> NoReturn:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    handlers_before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers_before.items():
            signal.signal(number, handler)


@contextmanager
def run_child_process(
    name: str, *arguments: str, env: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Python module as a process; stop it and its children when the block ends.

    It has a process group of its own, so that a Ctrl-C in the terminal reaches this process alone,
    which then stops the others in order. Its output goes to `get_log_path(name)`.
    """
    command = [sys.executable, "-m", *arguments]
    with get_log_path(name).open("wb") as log:
        process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
        )
    try:
        yield process
    finally:
        _stop_process_group(process)


def _stop_process_group(process: subprocess.Popen[bytes]) -> None:
    """End a process group: ask, wait, then kill what is left of it."""
    _signal_process_group(process, signal.SIGTERM)
    try:
        process.wait(timeout=STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        # Also where the process itself has ended: a run that it started may live on in its group.
        _signal_process_group(process, signal.SIGKILL)
        process.wait()


def _signal_process_group(process: subprocess.Popen[bytes], signal_number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, signal_number)
    except ProcessLookupError:
        return


def get_log_path(process_name: str) -> Path:
    """Return the absolute path of a child process's log, its directory made."""
    path = (paths.prefect_dir() / f"{process_name}.log").resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def build_api_url(port: int) -> str:
    """Return the address of a Prefect server's API on loopback."""
    return f"http://{LOOPBACK}:{port}/api"


def build_environment(prefect_api_url: str) -> dict[str, str]:
    """Return the environment of servers, workers and runs on this home.

    Its paths are absolute, since a worker starts runs in a directory of its own.
    """
    settings = get_settings()
    scripts_dir = Path(sys.executable).parent
    return {
        **build_child_environment(),
        **SERVER_ENVIRONMENT,
        # A worker starts runs as `python`, which must be the one that has Meterwatch.
        "PATH": f"{scripts_dir}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "METERWATCH_HOME": str(settings.home.resolve()),
        "METERWATCH_LANDING": str(settings.landing_dir.resolve()),
        "PREFECT_HOME": str(paths.prefect_dir().resolve()),
        "PREFECT_API_URL": prefect_api_url,
    }


@contextmanager
def run_prefect_server(port: int) -> Iterator[Callable[[], str]]:
    """Run a Prefect server on loopback, its database in the home.

    Yields a function that waits until the server answers and returns the address of its API, so
    that the caller can start other processes meanwhile.

    Raises:
        UserError: another server has the home.
    """
    url = build_api_url(port)
    command = ("prefect", "server", "start", "--host", LOOPBACK, "--port", str(port))
    with (
        _lock_server(),
        run_child_process("server", *command, env=build_environment(url)) as server,
    ):

        def wait_for_url() -> str:
            wait_until_healthy(f"{url}/health", server, "server")
            return url

        yield wait_for_url


@contextmanager
def _lock_server() -> Iterator[None]:
    # Two servers on one SQLite would each run the schedules.
    try:
        with FileLock(get_log_path("server").with_suffix(".lock"), timeout=0):
            yield
    except Timeout:
        raise UserError(
            f"a Prefect server already runs on {paths.home_dir()}: stop it or set PREFECT_API_URL"
        ) from None


def wait_until_healthy(url: str, process: subprocess.Popen[bytes], process_name: str) -> None:
    """Wait until `url` answers with success.

    Raises:
        RuntimeError: the process ended or did not answer in time; the error shows its log's end.
    """
    is_late = stop_after_delay(START_TIMEOUT_S)
    retry_request = Retrying(
        retry=retry_if_exception_type(httpx.HTTPError),
        stop=lambda attempt: process.poll() is not None or is_late(attempt),
        wait=wait_fixed(HEALTH_INTERVAL_S),
    )
    try:
        retry_request(_request_health, url)
    except RetryError:
        log_tail = get_log_path(process_name).read_text(errors="replace")[-LOG_TAIL_CHARACTERS:]
        raise RuntimeError(f"{process_name} did not start ({url}):\n{log_tail}") from None


def _request_health(url: str) -> None:
    # trust_env would send the request to the environment's proxy, which cannot reach loopback.
    httpx.get(url, timeout=HEALTH_TIMEOUT_S, trust_env=False).raise_for_status()


def find_free_port() -> int:
    """Return a loopback port on which nothing listens at this moment."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def refuse_used_port(port: int, port_variable: str) -> None:
    """Refuse a loopback port that is in use; `port_variable` is the setting that names it.

    Raises:
        UserError: something listens on it.
    """
    with socket.socket() as probe:
        if probe.connect_ex((LOOPBACK, port)) == 0:
            raise UserError(f"port {port} is in use: set {port_variable} to a free one")

"""Child processes that end with us, and the Prefect server as one of them."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NoReturn
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from filelock import FileLock, Timeout

from flows import CONSOLE_LEVEL_VARIABLE
from ml.errors import UserError
from tasks import paths
from tasks.settings import get_settings

LOOPBACK: Final = "127.0.0.1"
START_TIMEOUT_S: Final = 120
STOP_TIMEOUT_S: Final = 20
LOG_TAIL_CHARACTERS: Final = 2_000
SERVER_ENVIRONMENT: Final = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Stop on the first Ctrl-C or SIGTERM, and let nothing more disturb the stopping."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def stop(*_: object) -> NoReturn:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def run_child_process(
    name: str, *arguments: str, env: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Python module as a process of its own group; stop the group when the block ends."""
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
        _signal_process_group(process, signal.SIGKILL)
        process.wait()


def _signal_process_group(process: subprocess.Popen[bytes], signal_number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, signal_number)
    except ProcessLookupError:
        return


def get_log_path(process_name: str) -> Path:
    """Where a child process writes."""
    path = (paths.home_dir() / "prefect" / f"{process_name}.log").resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def build_api_url(port: int) -> str:
    """The address of a Prefect server's API."""
    return f"http://{LOOPBACK}:{port}/api"


def build_environment(prefect_api_url: str) -> dict[str, str]:
    """What servers, workers and runs share; paths are absolute, as a run starts elsewhere."""
    home = paths.home_dir().resolve()
    ours = Path(sys.executable).parent
    return {
        **{name: value for name, value in os.environ.items() if name != CONSOLE_LEVEL_VARIABLE},
        **SERVER_ENVIRONMENT,
        "PATH": f"{ours}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "METERWATCH_HOME": str(home),
        "METERWATCH_LANDING": str(get_settings().landing_dir.resolve()),
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_API_URL": prefect_api_url,
    }


@contextmanager
def run_prefect_server(port: int) -> Iterator[Callable[[], str]]:
    """Run a Prefect server on loopback, its database in the home.

    Yield what waits for it and returns the address of its API, so that others start meanwhile.

    Raises:
        UserError: another server has the home.
    """
    url = build_api_url(port)
    command = ("prefect", "server", "start", "--host", LOOPBACK, "--port", str(port))
    with (
        _lock_server(),
        run_child_process("server", *command, env=build_environment(url)) as server,
    ):

        def ready() -> str:
            wait_until_healthy(f"{url}/health", server, "server")
            return url

        yield ready


@contextmanager
def _lock_server() -> Iterator[None]:
    try:
        with FileLock(get_log_path("server").with_suffix(".lock"), timeout=0):
            yield
    except Timeout:
        raise UserError(
            f"a Prefect server already runs on {paths.home_dir()}: stop it or set PREFECT_API_URL"
        ) from None


def wait_until_healthy(url: str, process: subprocess.Popen[bytes], process_name: str) -> None:
    """Wait until `url` answers.

    Raises:
        RuntimeError: the process ended or did not answer in time.
    """
    opener = build_opener(ProxyHandler({}))
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            opener.open(url, timeout=5).close()
            return
        except (URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    tail = get_log_path(process_name).read_text(errors="replace")[-LOG_TAIL_CHARACTERS:]
    raise RuntimeError(f"{process_name} did not start ({url}):\n{tail}")


def find_free_port() -> int:
    """A loopback port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def refuse_used_port(port: int, port_variable: str) -> None:
    """Make sure that a port is free.

    Raises:
        UserError: something listens on it.
    """
    with socket.socket() as probe:
        if probe.connect_ex((LOOPBACK, port)) == 0:
            raise UserError(f"port {port} is in use: set {port_variable} to a free one")

"""The data parallel processes of a training: one a device, here or on several machines.

Their ranks stand in the environment variables that `torchrun` sets. Each loads the same fleet from
the home, which all of them see; rank 0 alone writes.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

from ml.training.parameters import SINGLE_PROCESS, TrainingProcesses
from tasks.settings import get_settings

LAUNCH_VARIABLE: Final = "TORCHELASTIC_RUN_ID"
"""Set in every process that `torchrun` or this module launched, and in no other."""
LAUNCH_ID: Final = "meterwatch"
"""Its value in processes of this module; any would do."""
MASTER_HOST: Final = "127.0.0.1"
"""Processes of this module are on one machine and meet on its loopback."""


def detect_training_processes() -> TrainingProcesses:
    """Return the data parallel processes that the environment names, or this process alone."""
    if LAUNCH_VARIABLE not in os.environ:
        return SINGLE_PROCESS
    n_processes = int(os.environ["WORLD_SIZE"])
    n_per_machine = int(os.environ["LOCAL_WORLD_SIZE"])
    return TrainingProcesses(
        rank=int(os.environ["RANK"]),
        n_processes=n_processes,
        n_machines=n_processes // n_per_machine,
    )


@contextmanager
def launch_training_processes(parameters_json: str) -> Iterator[TrainingProcesses]:
    """Give the processes that train together, and launch the others while the block lasts.

    Launched by `torchrun`, they are there already. Otherwise one is launched for each device but
    the first, which this process takes; with one device there are none. `parameters_json` are those
    of the training. The others are killed when the block ends: they have nothing to write.

    Neither `torch.distributed.launcher.api.elastic_launch` nor `torchrun`: both start all ranks as
    children, while rank 0 must be this process, which holds the flow run, the lock of the training
    and the terminal. Lightning's launcher starts the program's own command line again, under a
    Prefect worker that of the worker's engine.
    """
    is_launched = LAUNCH_VARIABLE in os.environ
    n_devices = get_settings().devices or max(1, torch.cuda.device_count())
    limit_torch_threads(1 if is_launched else n_devices)
    if is_launched or n_devices == 1:
        yield detect_training_processes()
        return
    port = _find_free_port()
    workers = [
        subprocess.Popen(
            (sys.executable, "-m", "tasks.ddp_worker", parameters_json),
            env=os.environ | _build_environment(rank, n_devices, port),
        )
        for rank in range(1, n_devices)
    ]
    own_environment = _build_environment(0, n_devices, port)
    os.environ.update(own_environment)
    try:
        yield detect_training_processes()
    finally:
        # Or the next training in this process would take itself for one that was launched.
        for name in own_environment:
            del os.environ[name]
        for worker in workers:
            worker.kill()
            worker.wait()


def limit_torch_threads(n_processes: int) -> None:
    """Set torch's threads to those that a setting pins, or to a process's share of the cores."""
    share = max(1, torch.get_num_threads() // n_processes) if n_processes > 1 else None
    n_threads = get_settings().threads or share
    if n_threads:
        torch.set_num_threads(n_threads)


def _build_environment(rank: int, n_processes: int, port: int) -> dict[str, str]:
    """Return the variables that `torchrun` would set for a process of a single machine."""
    return {
        LAUNCH_VARIABLE: LAUNCH_ID,
        "MASTER_ADDR": MASTER_HOST,
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(n_processes),
        "LOCAL_WORLD_SIZE": str(n_processes),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
    }


def _find_free_port() -> int:
    with socket.socket() as free:
        free.bind((MASTER_HOST, 0))
        return int(free.getsockname()[1])

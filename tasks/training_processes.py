"""The processes that train together: one a device, here or on several machines.

Their ranks stand where `torchrun` puts them, in the environment. Each loads the same fleet from the
home, which all of them see; the first alone writes.
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
MASTER_HOST: Final = "127.0.0.1"


def detect_training_processes() -> TrainingProcesses:
    """The team that the environment names."""
    if LAUNCH_VARIABLE not in os.environ:
        return SINGLE_PROCESS
    rank, size, here = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    )
    return TrainingProcesses(rank=rank, n_processes=size, n_machines=size // here)


@contextmanager
def launch_training_processes(parameters_json: str) -> Iterator[TrainingProcesses]:
    """The team that trains: the one this process was launched in, or one made for its devices.

    `parameters_json` are those of the training that the other processes take part in.
    """
    size = get_settings().devices or max(1, torch.cuda.device_count())
    limit_torch_threads(1 if LAUNCH_VARIABLE in os.environ else size)
    if LAUNCH_VARIABLE in os.environ or size == 1:
        yield detect_training_processes()
        return
    common = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": MASTER_HOST}
    common |= {LAUNCH_VARIABLE: "meterwatch", "MASTER_PORT": _find_free_port()}

    def build_environment(rank: int) -> dict[str, str]:
        named = common | {"RANK": rank, "LOCAL_RANK": rank}
        return {name: str(value) for name, value in named.items()}

    command = (sys.executable, "-m", "tasks.ddp_worker", parameters_json)
    others = [
        subprocess.Popen(command, env=os.environ | build_environment(rank))
        for rank in range(1, size)
    ]
    os.environ.update(build_environment(0))
    try:
        yield detect_training_processes()
    finally:
        for name in build_environment(0):
            del os.environ[name]
        for other in others:
            other.kill()
            other.wait()


def limit_torch_threads(n_processes: int) -> None:
    """Give torch the threads that were pinned, or this process's share of the cores."""
    shared = max(1, torch.get_num_threads() // n_processes) if n_processes > 1 else None
    if threads := get_settings().threads or shared:
        torch.set_num_threads(threads)


def _find_free_port() -> int:
    with socket.socket() as free:
        free.bind((MASTER_HOST, 0))
        return int(free.getsockname()[1])

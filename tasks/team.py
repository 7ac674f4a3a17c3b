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

from ml.loop import SINGLE_PROCESS, TrainingProcesses
from tasks.settings import settings

LAUNCHED: Final = "TORCHELASTIC_RUN_ID"
HOST: Final = "127.0.0.1"


def present() -> TrainingProcesses:
    """The team that the environment names."""
    if LAUNCHED not in os.environ:
        return SINGLE_PROCESS
    rank, size, here = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    )
    return TrainingProcesses(rank=rank, n_processes=size, n_machines=size // here)


@contextmanager
def assembled(parameters: str) -> Iterator[TrainingProcesses]:
    """The team that trains: the one this process was launched in, or one made for its devices.

    `parameters` are what the other processes are to assist in, as JSON.
    """
    size = settings().devices or max(1, torch.cuda.device_count())
    share_threads(1 if LAUNCHED in os.environ else size)
    if LAUNCHED in os.environ or size == 1:
        yield present()
        return
    common = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": HOST}
    common |= {LAUNCHED: "meterwatch", "MASTER_PORT": _free_port()}

    def environment(rank: int) -> dict[str, str]:
        named = common | {"RANK": rank, "LOCAL_RANK": rank}
        return {name: str(value) for name, value in named.items()}

    command = (sys.executable, "-m", "tasks.assist", parameters)
    others = [
        subprocess.Popen(command, env=os.environ | environment(rank)) for rank in range(1, size)
    ]
    os.environ.update(environment(0))
    try:
        yield present()
    finally:
        for name in environment(0):
            del os.environ[name]
        for other in others:
            other.kill()
            other.wait()


def share_threads(processes: int) -> None:
    """Give torch the threads that were pinned, or this process's share of the cores."""
    shared = max(1, torch.get_num_threads() // processes) if processes > 1 else None
    if threads := settings().threads or shared:
        torch.set_num_threads(threads)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        return int(free.getsockname()[1])

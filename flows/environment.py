"""Prepare a process that runs flows: Prefect's logging and the C library's memory.

Prefect reads its settings when it is imported, so all of it happens before that: in this process by
`prepare_process`, in child processes by their environment.
"""

import ctypes
import os
from typing import Final

CONSOLE_LEVEL_VARIABLE: Final = "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"

LOGGING_ENVIRONMENT: Final = {
    # Prefect shows a run the records of its own loggers only: without this, "out of memory, half
    # the batch" or "using the local copy of the champion" would never reach the run's page.
    "PREFECT_LOGGING_EXTRA_LOGGERS": "ml,tasks",
    # Without a server the same functions run outside a flow run, and Prefect would warn of every
    # record that it cannot assign to one.
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
}
"""What every process that may run a flow needs, so that warnings of ours reach the run's page."""

M_ARENA_MAX: Final = -8
"""Parameter of glibc's mallopt(3): the most arenas that threads allocate from."""


def prepare_process() -> None:
    """Prepare this process; what the environment says already stays. Call it before Prefect comes.

    The console shows no log: a recorded flow's log goes to Prefect, the user sees the outcome.
    """
    os.environ.setdefault(CONSOLE_LEVEL_VARIABLE, "CRITICAL")
    for name, value in LOGGING_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    _limit_malloc_arenas()


def build_child_environment() -> dict[str, str]:
    """Return the environment of a child process that serves or runs flows; its console is a log."""
    inherited = {
        name: value for name, value in os.environ.items() if name != CONSOLE_LEVEL_VARIABLE
    }
    arenas = {"MALLOC_ARENA_MAX": str(_count_arenas())}
    return {**arenas, **LOGGING_ENVIRONMENT, **inherited}


def _limit_malloc_arenas() -> None:
    """Let threads share one arena a core.

    glibc allows 8 a core and hardly returns them: on 2 cores 16 instead of 2 cost a training 1.3 GB
    of address space, so that it did not fit in 3 GB (`ulimit -v`).
    """
    # Other C libraries (musl, macOS) have no mallopt, and no such arenas.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, _count_arenas())


def _count_arenas() -> int:
    return os.cpu_count() or 1

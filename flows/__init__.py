"""When and in what order.

A flow is recorded by Prefect where a server is configured; where none is, its undecorated function
runs the same steps without the seconds that a temporary server takes.
"""

import ctypes
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from ml.errors import UserError

if TYPE_CHECKING:
    from prefect import Flow

CONSOLE_LEVEL_VARIABLE: Final = "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"
M_ARENA_MAX: Final = -8
"""glibc's `M_ARENA_MAX`, see mallopt(3)."""

P = ParamSpec("P")
R = TypeVar("R")


def flow(**options: Any) -> Callable[[Callable[P, R]], "Flow[P, R]"]:
    """Declare a flow; options as `prefect.flow` takes them."""
    import prefect

    declare: Callable[[Callable[P, R]], Flow[P, R]] = prefect.flow(**options)
    return declare


def run_flow(flow: "Flow[P, R]", *args: P.args, **parameters: P.kwargs) -> R:
    """Run a flow: recorded where a Prefect server is configured, else its function alone.

    Raises:
        UserError: the configured server does not answer.
    """
    if not (url := find_server_url()):
        return flow.fn(*args, **parameters)
    _refuse_unreachable_server(url)
    return flow(*args, **parameters)


def rename_flow_run(run_name: str) -> None:
    """Rename the flow run, where there is one, once it knows its night."""
    from prefect.client.orchestration import get_client
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    if context is not None and context.flow_run is not None:
        with get_client(sync_client=True) as client:
            client.update_flow_run(context.flow_run.id, name=run_name)


def find_server_url() -> str | None:
    """The Prefect server that the environment or the active profile names."""
    from prefect.settings import get_current_settings

    return get_current_settings().api.url


def _refuse_unreachable_server(url: str) -> None:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        error = client.api_healthcheck()
    if error is not None:
        raise UserError(f"the Prefect server at {url} does not answer: {error}")


def _limit_malloc_arenas() -> None:
    """Keep threads of one core in one arena: eight cost a training 1.3 GB of address space."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, os.cpu_count() or 1)


def _strip_user_error_traceback(record: logging.LogRecord) -> bool:
    """Log a user's mistake as the one line it is."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, UserError):
        record.msg, record.args, record.exc_info = str(error), (), None
    return True


_limit_malloc_arenas()
for _name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_name).addFilter(_strip_user_error_traceback)

"""When and in what order.

A flow is recorded by Prefect where a server is configured; where none is, its undecorated function
runs the same steps without the seconds that a temporary server takes.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from ml.errors import UserError

if TYPE_CHECKING:
    from prefect import Flow

P = ParamSpec("P")
R = TypeVar("R")


def flow(**options: Any) -> Callable[[Callable[P, R]], "Flow[P, R]"]:
    """Declare a flow; options as `prefect.flow` takes them."""
    import prefect

    declare: Callable[[Callable[P, R]], Flow[P, R]] = prefect.flow(**options)
    return declare


def run_flow(flow: "Flow[P, R]", *args: P.args, **parameters: P.kwargs) -> R:
    """Run a flow: recorded where a Prefect server is configured, else its function alone."""
    run: Callable[P, R] = flow if server_url() else flow.fn
    return run(*args, **parameters)


def leave_report(key: str, markdown: str) -> None:
    """Leave a Markdown artifact with the flow run, where there is one."""
    from prefect.artifacts import create_markdown_artifact
    from prefect.context import FlowRunContext

    if FlowRunContext.get() is not None:
        create_markdown_artifact(markdown, key=key)


def server_url() -> str | None:
    """The Prefect server that the environment or the active profile names."""
    from prefect.settings import get_current_settings

    return get_current_settings().api.url


def _without_traceback(record: logging.LogRecord) -> bool:
    """Log a user's mistake as the one line it is."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, UserError):
        record.msg, record.args, record.exc_info = str(error), (), None
    return True


for _name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_name).addFilter(_without_traceback)

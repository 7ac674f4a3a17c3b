"""Say when and in what order.

A flow is recorded by Prefect where a server is configured; where none is, its undecorated function
runs the same steps without the seconds that a temporary server takes.
"""

import logging
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from ml.errors import UserError

if TYPE_CHECKING:
    from prefect import Flow

P = ParamSpec("P")
R = TypeVar("R")


def run_flow(flow: "Flow[P, R]", *args: P.args, **parameters: P.kwargs) -> R:
    """Run a flow and return its result: recorded where a Prefect server is configured, else plain.

    Raises:
        UserError: the configured server does not answer.
    """
    url = find_server_url()
    if url is None:
        return flow.fn(*args, **parameters)
    _refuse_unreachable_server(url)
    return flow(*args, **parameters)


def rename_flow_run(run_name: str) -> None:
    """Rename the flow run, where there is one, for flows that learn their night as they run."""
    from prefect.client.orchestration import get_client
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    if context is not None and context.flow_run is not None:
        with get_client(sync_client=True) as client:
            client.update_flow_run(context.flow_run.id, name=run_name)


def find_server_url() -> str | None:
    """Return the API of the Prefect server that the environment or the active profile names."""
    from prefect.settings import get_current_settings

    return get_current_settings().api.url


def _refuse_unreachable_server(url: str) -> None:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        error = client.api_healthcheck()
    if error is not None:
        raise UserError(f"the Prefect server at {url} does not answer: {error}")


def _strip_user_error_traceback(record: logging.LogRecord) -> bool:
    """Log a user's mistake as the one line it is; let every record pass."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, UserError):
        record.msg = str(error)
        record.args = ()
        record.exc_info = None
    return True


# On import, since a worker's process starts Prefect's engine and of ours only the flow's module.
for _name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_name).addFilter(_strip_user_error_traceback)

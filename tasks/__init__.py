"""Load by key, compute, write by key: where data lives and what may fail.

A task loads by key, calls `ml`, writes by key and returns a small receipt: keys cross a Prefect
boundary, never frames, because Prefect would hash and pickle every argument and result. Nor do
closures, which no other process could be given.
"""

import functools
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final, Generic, ParamSpec, TypeVar

from ml.errors import UserError

P = ParamSpec("P")
R = TypeVar("R")

RETRY_DELAY_S: Final = 2.0
"""Pause before another try of a task that has `retries`. Chosen: what a retry mends, a file
replaced while it was read or a busy disk, takes about a second."""


class FlowAwareTask(Generic[P, R]):
    """A function that becomes a Prefect task run inside a flow run and a plain call outside."""

    def __init__(self, function: Callable[P, R], options: dict[str, Any]) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.options = options

    @functools.cached_property
    def prefect_task(self) -> Callable[..., Any]:
        """Return the Prefect task; made late, so that verbs without a flow never import Prefect."""
        from prefect import task
        from prefect.cache_policies import NO_CACHE

        defaults = {
            "cache_policy": NO_CACHE,
            "retry_condition_fn": _is_retryable,
            "retry_delay_seconds": RETRY_DELAY_S,
        }
        declare: Callable[..., Callable[..., Any]] = task
        return declare(self.function, **defaults | self.options)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run once, in this thread."""
        run: Callable[..., R] = self.prefect_task if is_in_flow_run() else self.function
        return run(*args, **kwargs)

    def map(
        self, items: Iterable[Any], on_done: Callable[[], object] | None = None, **shared: Any
    ) -> list[R]:
        """Run once an item (the first parameter) and return the results in the order of the items.

        Inside a flow run each item is a task run of its own, as many at once as the flow's task
        runner has threads; outside one follows the other. `shared` arguments are the same for all.
        `on_done` is called in this thread after each result, for a progress bar.

        Raises:
            Exception: what the first failed item raised; in a flow run the others have run.
        """
        if not is_in_flow_run():
            run: Callable[..., R] = self.function
            results = []
            for item in items:
                results.append(run(item, **shared))
                _call(on_done)
            return results
        from prefect import unmapped

        same_for_all = {name: unmapped(value) for name, value in shared.items()}
        prefect_task: Any = self.prefect_task
        futures = prefect_task.map(list(items), **same_for_all)
        for future in futures:
            future.wait()
            _call(on_done)
        mapped: list[R] = futures.result()
        return mapped


def _call(callback: Callable[[], object] | None) -> None:
    if callback is not None:
        callback()


def task(**options: Any) -> Callable[[Callable[P, R]], FlowAwareTask[P, R]]:
    """Declare a task that caches nothing and retries no UserError; options as `prefect.task`."""
    return lambda function: FlowAwareTask(function, options)


def _is_retryable(_task: object, _task_run: object, state: Any) -> bool:
    """Return whether another try may help: what a user has to mend stays wrong."""
    return not isinstance(state.data, UserError)


def is_in_flow_run() -> bool:
    """Tell whether this thread runs in a Prefect flow run."""
    # Prefect sets the context only once it is imported, and its import takes a second.
    context = sys.modules.get("prefect.context")
    return context is not None and context.FlowRunContext.get() is not None

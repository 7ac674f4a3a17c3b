"""Where data lives and what may fail.

A task loads by key, calls `ml`, writes by key and returns a small receipt: keys cross a Prefect
boundary, never frames, because Prefect would hash and pickle every argument and result.
"""

import functools
import sys
from collections.abc import Callable, Iterable
from typing import Any, Generic, ParamSpec, TypeVar

from ml.errors import UserError

P = ParamSpec("P")
R = TypeVar("R")


class FlowAwareTask(Generic[P, R]):
    """A function that becomes a Prefect task run inside a flow run and a plain call outside."""

    def __init__(self, function: Callable[P, R], options: dict[str, Any]) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.options = options

    @functools.cached_property
    def prefect_task(self) -> Callable[..., Any]:
        """The Prefect task; made late, so that verbs without a flow never import Prefect."""
        from prefect import task
        from prefect.cache_policies import NO_CACHE

        declare: Callable[..., Callable[..., Any]] = task
        options = {"cache_policy": NO_CACHE, "retry_condition_fn": _is_retryable, **self.options}
        return declare(self.function, **options)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run once."""
        run: Callable[..., R] = self.prefect_task if is_in_flow_run() else self.function
        return run(*args, **kwargs)

    def map(self, items: Iterable[Any], **shared_arguments: Any) -> list[R]:
        """Run once an item (the first parameter), with `shared_arguments` the same for all."""
        run: Callable[..., R] = self
        return [run(item, **shared_arguments) for item in items]


def task(**options: Any) -> Callable[[Callable[P, R]], FlowAwareTask[P, R]]:
    """Declare a task with the house's cache policy; options as `prefect.task` takes them."""
    return lambda function: FlowAwareTask(function, options)


def _is_retryable(_task: object, _task_run: object, state: Any) -> bool:
    """Whether another try may help: what a person has to mend stays wrong."""
    return not isinstance(state.data, UserError)


def is_in_flow_run() -> bool:
    """Tell whether this thread runs in a Prefect flow run."""
    context = sys.modules.get("prefect.context")
    return context is not None and context.FlowRunContext.get() is not None

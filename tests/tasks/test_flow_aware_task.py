"""A task is a plain call outside a flow run; what it is inside one, tests/flows says."""

import pytest

from ml.errors import UserError
from tasks import FlowAwareTask, task


@task(name="double")
def double(number: int, by: int = 2) -> int:
    """Double a number."""
    return by * number


def test_task_is_called_as_the_function_that_it_wraps() -> None:
    assert isinstance(double, FlowAwareTask)
    assert double.__name__ == "double"
    assert double(3) == 6
    assert double(3, by=5) == 15


def test_map_outside_a_flow_run_goes_item_by_item_and_reports_each() -> None:
    reported: list[int] = []
    results = double.map(iter([3, 1]), by=3, on_done=lambda: reported.append(len(reported)))
    assert results == [9, 3]
    assert reported == [0, 1]


def test_map_outside_a_flow_run_stops_at_the_first_error() -> None:
    seen: list[int] = []

    @task(name="refuse")
    def refuse(number: int) -> None:
        seen.append(number)
        raise UserError(f"{number} is refused")

    with pytest.raises(UserError, match="1 is refused"):
        refuse.map([1, 2])
    assert seen == [1]


def test_declared_task_retries_after_a_delay_and_caches_nothing() -> None:
    from prefect.cache_policies import NO_CACHE

    @task(name="retrying", retries=2)
    def retrying() -> None:
        """Do nothing."""

    declared = retrying.prefect_task
    assert (declared.retries, declared.retry_delay_seconds) == (2, 2.0)
    assert declared.cache_policy == NO_CACHE

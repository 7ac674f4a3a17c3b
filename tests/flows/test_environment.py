"""Processes that run flows are prepared before Prefect reads its settings."""

import os

import pytest

from flows import environment

EXTRA_LOGGERS = "PREFECT_LOGGING_EXTRA_LOGGERS"


@pytest.fixture(autouse=True)
def _restored_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*environment.LOGGING_ENVIRONMENT, environment.CONSOLE_LEVEL_VARIABLE):
        # Set first, so that what the test's code sets is removed again after it.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_prepared_process_names_our_loggers_and_silences_the_console() -> None:
    environment.prepare_process()
    assert os.environ[EXTRA_LOGGERS] == "ml,tasks"
    assert os.environ[environment.CONSOLE_LEVEL_VARIABLE] == "CRITICAL"


def test_variables_that_the_user_has_set_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EXTRA_LOGGERS, "ml")
    environment.prepare_process()
    assert os.environ[EXTRA_LOGGERS] == "ml"
    assert environment.build_child_environment()[EXTRA_LOGGERS] == "ml"


def test_child_process_logs_to_its_console_and_limits_its_arenas(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(environment.CONSOLE_LEVEL_VARIABLE, "CRITICAL")
    child = environment.build_child_environment()
    assert environment.CONSOLE_LEVEL_VARIABLE not in child
    assert child[EXTRA_LOGGERS] == "ml,tasks"
    assert child["MALLOC_ARENA_MAX"] == str(os.cpu_count())

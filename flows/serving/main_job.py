"""Run the main job, recorded by a server of its own: from delivered readings to anomaly table."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Final

from prefect.logging.handlers import APILogHandler
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import find_server_url, run_flow
from flows.backfill import backfill
from flows.ingest import ingest
from flows.rendering import print_table
from flows.serving.processes import find_free_port, run_prefect_server, stop_on_signals
from flows.simulate import simulate
from flows.train import TrainParameters, train
from ml.errors import UserError
from ml.simulation.environment import FleetConfig
from tasks import paths, queries, reports
from tasks.fleet_loading import find_last_well_reported_night
from tasks.reports import summarize_simulated_detection
from tasks.settings import get_settings

SIMULATED_FLEET: Final = FleetConfig()
"""As large as the full trial of Low Carbon London, 5,567 households, and 100 nights long."""
N_SCORED_SIMULATED_NIGHTS: Final = 7
"""Last nights that are scored and not learned from. Chosen: a week, so that the job stays short."""
N_SCORED_DELIVERED_NIGHTS: Final = 30
"""The same of delivered readings. Chosen: a month, in which lasting anomalies show as episodes."""
N_URGENT_HOUSEHOLDS: Final = 15
"""Rows of the table at the end. Chosen to fit a terminal."""
N_EPOCHS: Final = 2
"""Training epochs. Chosen: a short training, so that the main job is over in minutes."""


def run_main_job(source: Path | None) -> None:
    """Run the main job on delivered readings or, without any, on a simulated fleet.

    Raises:
        UserError: the home holds other readings already, or a step failed.
    """
    _separate_simulated_home(source)
    with stop_on_signals(), _record_flows():
        if source is None:
            _simulate_fleet()
        _ingest_readings(source or paths.simulated_dir().resolve())
        last = find_last_well_reported_night()
        first = last - timedelta(
            days=(N_SCORED_DELIVERED_NIGHTS if source else N_SCORED_SIMULATED_NIGHTS) - 1
        )
        _train_detector(last_training_night=first - timedelta(days=1))
        _score_nights(first, last)
    _print_most_urgent_households(first, last)
    if source is None:
        _print_detection_summary(first, last)
    _print_next_steps(first, last)


@contextmanager
def _record_flows() -> Iterator[None]:
    """Record the flows on the configured server or, without one, on one of this job's own."""
    if find_server_url():
        yield
        return
    with (
        run_prefect_server(find_free_port()) as wait_for_url,
        temporary_settings({PREFECT_API_URL: wait_for_url()}),
    ):
        try:
            yield
        finally:
            # Logs are sent by a thread in batches: the last ones would find no server.
            APILogHandler().flush()


def _separate_simulated_home(source: Path | None) -> None:
    """Rename a simulated home before delivered readings come; simulate into no other home.

    Raises:
        UserError: the home holds delivered readings, or the new name is taken.
    """
    home = paths.home_dir().resolve()
    is_simulated = paths.simulated_dir().exists()
    if source is None and paths.has_table_files("days") and not is_simulated:
        raise UserError(
            f"{home} holds delivered readings: set METERWATCH_HOME to another directory"
        )
    if source is not None and is_simulated:
        renamed_home = home.with_name(f"{home.name}.simulated")
        if renamed_home.exists():
            raise UserError(
                f"{home} holds a simulated fleet, and {renamed_home} another: remove one"
            )
        home.rename(renamed_home)
        print(f"the simulated fleet of {home} lies in {renamed_home} now", file=sys.stderr)


@contextmanager
def _report_step(step_name: str) -> Iterator[list[str]]:
    """Print on standard error which step runs and, once it is done, its outcome and seconds.

    Yields a list for the parts of the outcome.
    """
    started = time.monotonic()
    outcome: list[str] = []
    print(f"{step_name} ...", file=sys.stderr, flush=True)
    yield outcome
    seconds = time.monotonic() - started
    print(f"{step_name}: {', '.join(outcome)} ({seconds:.0f} s)", file=sys.stderr, flush=True)


def _simulate_fleet() -> None:
    # Absolute, as the flow's recorded parameters and messages name it.
    fleet_dir = paths.simulated_dir().resolve()
    config_file = fleet_dir / "simulation.json"
    with _report_step("simulate") as outcome:
        if (
            config_file.exists()
            and FleetConfig.model_validate_json(config_file.read_text()) == SIMULATED_FLEET
        ):
            outcome.append(f"{fleet_dir} is there already")
            return
        receipt = run_flow(simulate, out=fleet_dir, config=SIMULATED_FLEET)
        outcome += [f"{receipt.n_households:,} households", f"{receipt.n_rows:,} readings"]


def _ingest_readings(source: Path) -> None:
    with _report_step("ingest") as outcome:
        receipt = run_flow(ingest, sources=[str(source)])
        outcome.append(f"{receipt.rows_in:,} rows in")


def _train_detector(last_training_night: date) -> None:
    with _report_step("train") as outcome:
        receipt = run_flow(
            train, parameters=TrainParameters(until=last_training_night, max_epochs=N_EPOCHS)
        )
        promoted = "promoted" if receipt.is_promoted else "not promoted"
        outcome += [f"nights up to {last_training_night}", f"version {receipt.version} {promoted}"]


def _score_nights(first_night: date, last_night: date) -> None:
    with _report_step("score") as outcome:
        receipt = run_flow(backfill, first_night=first_night, last_night=last_night)
        outcome += [
            f"{first_night} to {last_night}",
            f"{receipt.n_household_nights:,} rows",
            f"{receipt.n_flagged:,} flagged",
        ]


def _print_most_urgent_households(first_night: date, last_night: date) -> None:
    parameters = {
        "from_night": str(first_night),
        "to_night": str(last_night),
        "n": str(N_URGENT_HOUSEHOLDS),
    }
    print_table(
        queries.run_query("top_households", parameters),
        f"\nMost urgent households of {first_night} to {last_night}",
    )


def _print_detection_summary(first_night: date, last_night: date) -> None:
    summary = summarize_simulated_detection(first_night, last_night)
    print_table(
        summary.counts_by_kind,
        f"\nInjected anomalies of {first_night} to {last_night}, and how many were flagged",
    )
    print(
        f"{summary.n_flagged:,} household-nights flagged, "
        f"{summary.precision:.0%} of them injected; "
        f"{summary.false_alarms_per_1000:.2f} false alarms per 1,000 normal household-nights "
        f"(budget {get_settings().alert_budget:g} false episodes)"
    )


def _print_next_steps(first_night: date, last_night: date) -> None:
    picture = reports.draw_most_urgent(first_night, last_night) or "none was flagged"
    print(
        f"\nscores, anomalies, episodes   {paths.home_dir() / 'tables'}\n"
        f"the same households, drawn    {picture}\n"
        f"ask in SQL                    meterwatch query top_anomalies --param night={last_night}\n"
        "runs, reports and models      make serve"
    )

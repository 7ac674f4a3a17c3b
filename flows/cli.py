"""The command line. A verb imports what it needs when it runs, so that small ones start fast."""

import errno
import os
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Final, Literal

from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number

from flows import CONSOLE_LEVEL_VARIABLE
from ml.errors import UserError
from ml.models import DEFAULT_MODEL, ModelName

EXIT_FAILED: Final = 1
EXIT_WRONG_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130
EXIT_PIPE_CLOSED: Final = 141
USER_FIXABLE_ERRNOS: Final = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOSPC}

app = App(
    name="meterwatch",
    help="Reads a fleet of smart meters every night and says which households behave abnormally.",
    result_action="return_value",
)
OutputFormat = Literal["table", "csv", "json", "parquet"]
SeedOption = Annotated[int, Parameter(validator=Number(gte=0, lt=2**31))]


class WrongUsageError(Exception):
    """Arguments that are well formed each but do not go together."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 done, 1 failed, 2 wrong usage."""
    # A recorded flow's log goes to Prefect; the person sees the outcome.
    os.environ.setdefault(CONSOLE_LEVEL_VARIABLE, "CRITICAL")
    try:
        app(arguments, exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except (CycloptsError, WrongUsageError) as error:
        return _print_error(error, EXIT_WRONG_USAGE)
    except UserError as error:
        return _print_error(error, EXIT_FAILED)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Python would complain again when it closes the pipe at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE_CLOSED
    except OSError as error:
        if error.errno not in USER_FIXABLE_ERRNOS:
            raise
        return _print_error(UserError(f"{error.filename}: {error.strerror}"), EXIT_FAILED)
    except (MemoryError, RuntimeError) as error:
        from ml.training.trainer import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        return _print_error(
            UserError(f"too little memory: {str(error).splitlines()[0]}"), EXIT_FAILED
        )
    return 0


def _print_error(error: Exception, exit_status: int) -> int:
    for line in str(error).splitlines():
        print("meterwatch:", line, file=sys.stderr)
    return exit_status


@app.command
def simulate(
    out: Path,
    /,
    *,
    households: Annotated[int, Parameter(validator=Number(gte=1, lt=1_000_000))] = 5567,
    days: Annotated[int, Parameter(validator=Number(gte=1, lte=3660))] = 100,
    start: date = date(2013, 9, 23),
    seed: SeedOption = 0,
) -> None:
    """Write a simulated fleet as it would be delivered, and the anomalies injected into it.

    Args:
        out: Directory to write; a fleet that is there is replaced.
        households: How many households.
        days: How many days.
        start: The first day.
        seed: The same seed is the same fleet.
    """
    from flows import run_flow
    from flows.simulate import simulate as flow
    from ml.simulation.environment import FleetConfig

    config = FleetConfig(households=households, days=days, start=start, seed=seed)
    receipt = run_flow(flow, out=out.resolve(), config=config)
    print(
        f"{receipt.out}: {receipt.n_households:,} households, {receipt.n_nights:,} nights, "
        f"{receipt.n_rows:,} readings, {receipt.n_injected_nights:,} household-nights injected"
    )


@app.command
def ingest(
    sources: list[str],
    /,
    *,
    weather: Path | None = None,
    holidays: Path | None = None,
    households: Path | None = None,
    tariffs: Path | None = None,
) -> None:
    """Take delivered readings into the lake; what was taken in before changes nothing.

    Args:
        sources: Files, directories or globs of delivered readings.
        weather: Hourly weather (default: found beside the readings, as are the three below).
        holidays: Bank holidays.
        households: The register of households.
        tariffs: The price signal of the time-of-use tariff.
    """
    from flows import run_flow
    from flows.ingest import ingest as flow
    from tasks.ingest.commit import IngestError

    beside = {
        "weather": weather,
        "holidays": holidays,
        "households": households,
        "tariffs": tariffs,
    }
    given = {name: str(path.resolve()) for name, path in beside.items() if path}
    try:
        receipt = run_flow(flow, sources=sources, **given)
    except IngestError as error:
        if error.receipt.files:
            print(*error.receipt.lines(), sep="\n")
        raise
    print(*receipt.lines(), sep="\n")


@app.command
def train(
    *,
    until: date | None = None,
    model: ModelName = DEFAULT_MODEL,
    seed: SeedOption = 0,
    promote: bool = True,
    max_epochs: Annotated[int | None, Parameter(validator=Number(gte=1, lte=100))] = None,
    batch_size: Annotated[int | None, Parameter(validator=Number(gte=2, lte=1 << 20))] = None,
) -> None:
    """Train a detector, register it, and promote it if it beats the champion.

    Args:
        until: The last night to learn from (default: the last that half the fleet reports).
        model: Which model.
        seed: The same seed on the same data is the same detector.
        promote: Whether the version may become the champion.
        max_epochs: The most passes over the data.
        batch_size: Household-nights that a step learns from, in parts if memory is short.
    """
    from flows import run_flow
    from flows.train import TrainParameters, is_data_parallel_worker, run_data_parallel_worker
    from flows.train import train as flow

    parameters = TrainParameters(
        until=until,
        model=model,
        seed=seed,
        promote=promote,
        max_epochs=max_epochs,
        batch_size=batch_size,
    )
    if is_data_parallel_worker():
        run_data_parallel_worker(parameters)
    else:
        print(run_flow(flow, parameters=parameters).line())


@app.command
def score(
    night: date | None = None,
    /,
    *,
    first_night: Annotated[date | None, Parameter("--from")] = None,
    last_night: Annotated[date | None, Parameter("--to")] = None,
) -> None:
    """Score a night for every registered household, or a range of nights.

    Args:
        night: The night (default: the last one in the lake).
        first_night: The first night of a range.
        last_night: The last night of a range, included.
    """
    if night and (first_night or last_night):
        raise WrongUsageError("give a night or --from and --to, not both")
    if (first_night is None) != (last_night is None):
        raise WrongUsageError("--from and --to go together")
    from flows import run_flow
    from flows.backfill import backfill
    from flows.score import score as flow

    if first_night and last_night:
        print(run_flow(backfill, first_night=first_night, last_night=last_night).line())
    else:
        print(run_flow(flow, night=night).line())


@app.command
def nightly(night: date | None = None, /) -> None:
    """Take in what has landed, score the night, check the tables, report.

    Args:
        night: The night to score (default: the last one in the lake).
    """
    from flows import run_flow
    from flows.nightly import nightly as flow

    receipt = run_flow(flow, night=night)
    landed = (
        receipt.ingest_receipt.lines()
        if receipt.ingest_receipt.files
        else ["nothing new has landed"]
    )
    print(*landed, receipt.score_receipt.line(), sep="\n")
    print(f"{len(receipt.offending_rows_by_check)} checks passed")


@app.command
def evaluate(
    *,
    until: date | None = None,
    seed: SeedOption = 0,
    detectors: Annotated[list[str] | None, Parameter(negative="", consume_multiple=True)] = None,
    copies: Annotated[int | None, Parameter(validator=Number(gte=1, lte=100))] = None,
) -> None:
    """Run the detection benchmark: every detector side by side on injected anomalies.

    Args:
        until: The last night to learn from (default: two thirds of the lake).
        seed: The same seed on the same data injects the same anomalies.
        detectors: Detectors, or the groups rules, baselines and networks (default: all).
        copies: How many times each held-out household is injected (default: by their number).
    """
    from flows import run_flow
    from flows.evaluate import EvaluateParameters
    from flows.evaluate import evaluate as flow

    parameters = EvaluateParameters(
        until=until, seed=seed, detectors=tuple(detectors or ()), copies=copies
    )
    print(*run_flow(flow, parameters=parameters).lines(), sep="\n")


@app.command
def check() -> None:
    """Check the tables; fail with the offending rows if there are any."""
    from flows.rendering import print_table
    from tasks import queries

    broken = {name: rows for name, rows in queries.run_checks().items() if len(rows)}
    for name, rows in broken.items():
        print_table(rows, f"{name}: {len(rows):,} offending rows")
    if broken:
        raise UserError(
            f"{len(broken)} of {len(queries.list_checks())} checks failed: {', '.join(broken)}"
        )
    print(f"{len(queries.list_checks())} checks passed")


@app.command
def query(
    name_or_sql: str,
    /,
    *,
    param: Annotated[list[str] | None, Parameter(negative="")] = None,
    output_format: Annotated[OutputFormat, Parameter("--format")] = "table",
    out: Path | None = None,
) -> None:
    """Ask a named query, or one SELECT over the views.

    Args:
        name_or_sql: A query of sql/queries, or SQL.
        param: A parameter of the query as name=value; may be given several times.
        output_format: How to write the answer.
        out: The file to write it to (default: standard output).
    """
    from flows.rendering import write_frame
    from tasks import queries

    given = dict(_parse_query_parameter(text) for text in param or [])
    write_frame(queries.run_query(name_or_sql, given), output_format, out)


def _parse_query_parameter(argument: str) -> tuple[str, str]:
    name, sign, value = argument.partition("=")
    if not sign:
        raise WrongUsageError(f"--param {argument}: expected name=value")
    return name, value


@app.command
def status() -> None:
    """Show what the lake covers, the champion, the last nights and the last runs."""
    from flows.rendering import print_table
    from tasks import queries

    for title, frame in queries.collect_status().items():
        print_table(frame, title)


@app.command
def run(source: Path | None = None, /) -> None:
    """Run the main job: ingest, train, score the last nights, show the anomalies.

    Args:
        source: A directory of delivered readings (default: a simulated fleet).
    """
    from flows.serving.main_job import run_main_job as main_job

    main_job(source)


@app.command
def serve() -> None:
    """Serve Prefect, its workers and MLflow on loopback, until Ctrl-C."""
    from flows.serving.serve import run_services as serve_all

    serve_all()

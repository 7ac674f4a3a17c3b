"""Define the command line. A verb imports what it needs when it runs: small ones start fast."""

import errno
import os
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Final, Literal

from cyclopts import App, CycloptsError, Parameter, ValidationError

from flows.environment import prepare_process
from ml.errors import UserError

EXIT_FAILED: Final = 1
"""A user's mistake or a failed run, printed as one line; 2 is wrong usage, as of most commands."""
EXIT_WRONG_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130
"""128 and the number of SIGINT, as a shell reports it; below, of SIGPIPE."""
EXIT_PIPE_CLOSED: Final = 141
USER_FIXABLE_ERRNOS: Final = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOSPC}
"""Rights, a file in a directory's place, a full disk: printed as one line. Others are bugs."""

app = App(
    name="meterwatch",
    help="Reads a fleet of smart meters every night and says which households behave abnormally.",
    result_action="return_value",
    default_parameter=Parameter(consume_multiple=True, negative_iterable=()),
)
OutputFormat = Literal["table", "csv", "json", "parquet"]


class WrongUsageError(Exception):
    """Arguments that are well formed each but do not go together."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 done, 1 failed, 2 wrong usage."""
    prepare_process()
    try:
        app(arguments, exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except ValidationError as error:
        return _print_error(WrongUsageError(_summarize_validation(error)), EXIT_WRONG_USAGE)
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


def _summarize_validation(error: ValidationError) -> str:
    """Return in one line which option of a pydantic model has which fault."""
    from pydantic import ValidationError as ModelError

    if not isinstance(error.__cause__, ModelError):
        return str(error)
    first = error.__cause__.errors()[0]
    option = "--" + "-".join(str(part) for part in first["loc"]).replace("_", "-")
    return f"{option}: {first['msg']} (got {first['input']!r})"


def _print_error(error: Exception, exit_status: int) -> int:
    for line in str(error).splitlines():
        print("meterwatch:", line, file=sys.stderr)
    return exit_status


# These three take the parameters of their flow, with the bounds, from its pydantic model. They are
# named by import strings, with the help beside, so that `--help` and small verbs import no torch.
app.command(
    "flows.simulate:run_simulate_command",
    name="simulate",
    help="Write a simulated fleet as it would be delivered, and the anomalies injected into it.",
)
app.command(
    "flows.train:run_train_command",
    name="train",
    help="Train a detector, register it, and promote it if it beats the champion.",
)
app.command(
    "flows.evaluate:run_evaluate_command",
    name="evaluate",
    help="Run the detection benchmark: every detector side by side on injected anomalies.",
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
    """Ingest delivered readings into the lake; what was ingested before changes nothing.

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

    reference_files = {
        "weather": weather,
        "holidays": holidays,
        "households": households,
        "tariffs": tariffs,
    }
    # Absolute: a recorded run may be repeated from another directory.
    named_files = {name: str(path.resolve()) for name, path in reference_files.items() if path}
    try:
        receipt = run_flow(flow, sources=sources, **named_files)
    except IngestError as error:
        if error.receipt.files:
            print(*error.receipt.lines(), sep="\n")
        raise
    print(*receipt.lines(), sep="\n")


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
    """Ingest what has landed, score the night, check the tables, report.

    Args:
        night: The night to score (default: the last one in the lake).
    """
    from flows import run_flow
    from flows.nightly import nightly as flow

    print(*run_flow(flow, night=night).lines(), sep="\n")


@app.command
def check() -> None:
    """Check the tables; fail with the offending rows if there are any."""
    from flows.rendering import print_table
    from tasks import queries

    offending_rows = queries.run_checks()
    failed = {name: rows for name, rows in offending_rows.items() if len(rows)}
    for name, rows in failed.items():
        print_table(rows, f"{name}: {len(rows):,} offending rows")
    if failed:
        raise UserError(
            f"{len(failed)} of {len(offending_rows)} checks failed: {', '.join(failed)}"
        )
    print(f"{len(offending_rows)} checks passed")


@app.command
def query(
    name_or_sql: str,
    /,
    *,
    # Not several values an option: `--param a=1 NAME` would take the name for one.
    param: Annotated[list[str] | None, Parameter(consume_multiple=False)] = None,
    output_format: Annotated[OutputFormat, Parameter("--format")] = "table",
    out: Path | None = None,
) -> None:
    """Ask a named query, or one SELECT over the views.

    Args:
        name_or_sql: A query of sql/macros, or SQL, in which these are table functions.
        param: A parameter of the query as name=value; may be given several times.
        output_format: How to write the answer.
        out: The file to write it to (default: standard output).
    """
    from flows.rendering import write_frame
    from tasks import queries

    parameter_values = dict(_parse_query_parameter(text) for text in param or [])
    write_frame(queries.run_query(name_or_sql, parameter_values), output_format, out)


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
    from flows.serving.main_job import run_main_job

    run_main_job(source)


@app.command
def serve() -> None:
    """Serve Prefect, its workers and MLflow on loopback, until Ctrl-C."""
    from flows.serving.serve import run_services

    run_services()

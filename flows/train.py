"""Trains a detector, registers it, promotes it if it is better."""

from typing import Annotated, Final

from cyclopts import Parameter
from prefect import flow
from prefect.runtime import flow_run
from pydantic import Field

from flows import run_flow
from ml.errors import UserError
from tasks.progress import show_spinner
from tasks.run_ledger import record_run
from tasks.training import (
    TrainReceipt,
    fit_detector,
    is_data_parallel_worker,
    promote_version,
    register_version,
    report_training,
    run_data_parallel_worker,
)
from tasks.training_job import TrainParameters, resolve_last_night

__all__ = [
    "TrainParameters",
    "TrainReceipt",
    "is_data_parallel_worker",
    "run_data_parallel_worker",
    "train",
]

DEFAULT_PARAMETERS: Final = TrainParameters()


def format_run_name() -> str:
    """Return the name of the flow run, which says the last night that is learned from."""
    parameters = TrainParameters.model_validate(flow_run.parameters.get("parameters") or {})
    try:
        return f"train until {resolve_last_night(parameters)}"
    except UserError:
        # The flow raises the same; a name that raises would leave the run Pending.
        return f"train until {parameters.until}"


@flow(name="train", flow_run_name=format_run_name)
def train(
    parameters: Annotated[TrainParameters, Field(description="what to learn from, and how")] = (
        DEFAULT_PARAMETERS
    ),
) -> TrainReceipt:
    """Train a detector, register it, and make it the champion if it is better.

    Returns what was done. Run again with the same readings and parameters it trains the same
    detector; a run that was stopped goes on from its last checkpoint.

    Raises:
        UserError: too few nights, or MLflow is down.
    """
    with record_run("train") as record:
        fitted = fit_detector(parameters)
        record.first_night = fitted.first_night
        record.last_night = fitted.last_night
        with show_spinner("registering the version"):
            version = register_version(fitted)
        with show_spinner("comparing it with the champion"):
            decision = promote_version(fitted, version, is_requested=parameters.promote)
        record.model_version = version.version
        record.message = decision.why
        receipt = TrainReceipt(version=version.version, decision=decision, fitted=fitted)
        report_training(receipt)
    return receipt


def run_train_command(
    *, parameters: Annotated[TrainParameters, Parameter(name="*")] = DEFAULT_PARAMETERS
) -> None:
    """Train a detector, register it, and promote it if it beats the champion."""
    # A data parallel worker is this command started again by its training, and only computes.
    if is_data_parallel_worker():
        run_data_parallel_worker(parameters)
    else:
        print(run_flow(train, parameters=parameters).line())

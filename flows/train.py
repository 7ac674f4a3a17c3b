"""Train, register, promote."""

from typing import Annotated, Final

from prefect.runtime import flow_run
from pydantic import Field

from flows import flow
from ml.errors import UserError
from tasks.progress import show_spinner
from tasks.run_ledger import record_run
from tasks.training import (
    TrainParameters,
    TrainReceipt,
    fit_detector,
    is_data_parallel_worker,
    promote_version,
    register_version,
    report_training,
    resolve_last_night,
    run_data_parallel_worker,
)

__all__ = [
    "TrainParameters",
    "TrainReceipt",
    "is_data_parallel_worker",
    "run_data_parallel_worker",
    "train",
]

DEFAULT_PARAMETERS: Final = TrainParameters()


def format_run_name() -> str:
    """The run's name, which says the last night that is learned from."""
    chosen = TrainParameters.model_validate(flow_run.parameters.get("parameters") or {})
    try:
        return f"train until {resolve_last_night(chosen)}"
    except UserError:
        # The flow says so itself; a name that raises would leave the run Pending.
        return f"train until {chosen.until}"


@flow(name="train", flow_run_name=format_run_name)
def train(
    parameters: Annotated[TrainParameters, Field(description="what to learn from, and how")] = (
        DEFAULT_PARAMETERS
    ),
) -> TrainReceipt:
    """Train a detector, register it, and make it the champion if it is better."""
    with record_run("train") as record:
        fitted = fit_detector(parameters)
        record.first_night, record.last_night = fitted.first_night, fitted.last_night
        with show_spinner("registering the version"):
            version = register_version(fitted)
        with show_spinner("comparing it with the champion"):
            verdict = promote_version(fitted, version, is_requested=parameters.promote)
        record.model_version, record.message = version.version, verdict.why
        receipt = TrainReceipt(version=version.version, decision=verdict, fitted=fitted)
        report_training(receipt)
    return receipt

"""Run the detection benchmark."""

from typing import Annotated, Final

from cyclopts import Parameter
from prefect import flow
from pydantic import Field

from flows import run_flow
from tasks.evaluation import EvaluateParameters, EvaluateReceipt, run_benchmark
from tasks.run_ledger import record_run

__all__ = ["EvaluateParameters", "EvaluateReceipt", "evaluate"]

DEFAULT_PARAMETERS: Final = EvaluateParameters()


@flow(name="evaluate")
def evaluate(
    parameters: Annotated[
        EvaluateParameters, Field(description="what to measure")
    ] = DEFAULT_PARAMETERS,
) -> EvaluateReceipt:
    """Measure every detector on the same injected anomalies; write tables and pictures.

    Raises:
        UserError: there is no such detector, or too few nights.
    """
    with record_run("evaluate") as record:
        receipt = run_benchmark(parameters)
        record.first_night, record.last_night = receipt.first_night, receipt.last_night
        record.message = f"written to {receipt.directory}"
    return receipt


def run_evaluate_command(
    *, parameters: Annotated[EvaluateParameters, Parameter(name="*")] = DEFAULT_PARAMETERS
) -> None:
    """Run the detection benchmark: every detector side by side on injected anomalies."""
    print(*run_flow(evaluate, parameters=parameters).lines(), sep="\n")

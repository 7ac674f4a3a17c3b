"""The detection benchmark."""

from typing import Annotated, Final

from pydantic import Field

from flows import flow
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
    """Set every detector beside the others on injected anomalies."""
    with record_run("evaluate") as record:
        receipt = run_benchmark(parameters)
        record.first_night, record.last_night = receipt.first_night, receipt.last_night
        record.message = f"written to {receipt.directory}"
    return receipt

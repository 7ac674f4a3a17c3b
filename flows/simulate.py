"""Write a simulated fleet."""

from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter
from prefect import flow

from flows import run_flow
from ml.simulation.environment import FleetConfig
from tasks.run_ledger import record_run
from tasks.simulation import SimulateReceipt, write_deliveries

DEFAULT_CONFIG: Final = FleetConfig()
"""As large as the full trial of Low Carbon London, and 100 nights long."""


@flow(name="simulate", flow_run_name="simulate {config.households} households")
def simulate(out: Path, config: FleetConfig) -> SimulateReceipt:
    """Write a simulated fleet to `out` as it would be delivered, and what was injected into it."""
    with record_run("simulate", config.nights[0], config.nights[-1]) as record:
        receipt = write_deliveries(out, config)
        record.message = f"{receipt.n_rows:,} readings written to {out}"
    return receipt


def run_simulate_command(
    out: Path, /, *, config: Annotated[FleetConfig, Parameter(name="*")] = DEFAULT_CONFIG
) -> None:
    """Write a simulated fleet as it would be delivered, and the anomalies injected into it.

    Args:
        out: Directory to write; a fleet that is there is replaced.
        config: Options of the command line, one a field.
    """
    receipt = run_flow(simulate, out=out.resolve(), config=config)
    print(
        f"{receipt.out}: {receipt.n_households:,} households, {receipt.n_nights:,} nights, "
        f"{receipt.n_rows:,} readings, {receipt.n_injected_nights:,} household-nights injected"
    )

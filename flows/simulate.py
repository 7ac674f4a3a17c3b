"""Write a simulated fleet."""

from pathlib import Path

from flows import flow
from ml.simulation.environment import FleetConfig
from tasks import task
from tasks.run_ledger import record_run
from tasks.simulation import SimulateReceipt
from tasks.simulation import simulate as write_fleet

write_deliveries = task(name="write deliveries")(write_fleet)


@flow(name="simulate", flow_run_name="simulate {config.households} households")
def simulate(out: Path, config: FleetConfig) -> SimulateReceipt:
    """Write a simulated fleet to `out` as it would be delivered, with the anomalies injected into it."""
    with record_run("simulate", config.nights[0], config.nights[-1]) as record:
        receipt = write_deliveries(out, config)
        record.message = f"{receipt.n_rows:,} readings written to {out}"
    return receipt

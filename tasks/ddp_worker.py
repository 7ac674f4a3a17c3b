"""A process that helps another to train: `python -m tasks.ddp_worker PARAMETERS`."""

import sys

from ml.errors import UserError
from tasks.training import TrainParameters, run_data_parallel_worker

if __name__ == "__main__":
    try:
        run_data_parallel_worker(TrainParameters.model_validate_json(sys.argv[1]))
    except UserError:
        sys.exit(1)  # the process that it helps says so

"""Takes part in the training of another process: `python -m tasks.ddp_worker PARAMETERS`.

`PARAMETERS` are `TrainParameters` as JSON. Started by `tasks.training_processes`.
"""

import sys

from ml.errors import UserError
from tasks.training import run_data_parallel_worker
from tasks.training_job import TrainParameters

if __name__ == "__main__":
    try:
        run_data_parallel_worker(TrainParameters.model_validate_json(sys.argv[1]))
    except UserError:
        # Silent: the process that launched this one meets the same error and reports it.
        sys.exit(1)

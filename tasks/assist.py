"""A process that helps another to train: `python -m tasks.assist PARAMETERS`."""

import sys

from ml.errors import UserError
from tasks.train import TrainParameters, assist

if __name__ == "__main__":
    try:
        assist(TrainParameters.model_validate_json(sys.argv[1]))
    except UserError:
        sys.exit(1)  # the process that it helps says so

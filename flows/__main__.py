"""`python -m flows`: the command line, for launchers that start a module."""

import sys

from flows.cli import main

if __name__ == "__main__":
    sys.exit(main())

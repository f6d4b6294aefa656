"""`python -m videoar` is the command line `videoar`."""

import sys

from videoar.runtime.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m bidistill` is the command `bidistill`."""

import sys

from bidistill.cli import main

if __name__ == "__main__":
    sys.exit(main())

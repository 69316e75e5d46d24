"""``python -m jaxmixed``: the command line."""

import sys

from jaxmixed.cli import main

if __name__ == "__main__":
    sys.exit(main())

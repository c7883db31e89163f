"""Exercise 1, part 1: gradient descent on a line at five learning rates.

    python scripts/exercise1_1stpart.py --quick

Flags are those of ``tune-hpc run`` (``--help`` lists them). Frames, tables, figures and the report are written to
``runs/exercise1_1stpart``, or to ``--output-dir``.
"""

import sys

from tune_hpc.cli import run_and_exit

if __name__ == "__main__":
    run_and_exit(["run", "exercise1_1stpart", *sys.argv[1:]])

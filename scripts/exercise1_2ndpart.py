"""Exercise 1, part 2: ten optimizers on a line at learning rate 0.01.

    python scripts/exercise1_2ndpart.py --quick

Flags are those of ``tune-hpc run`` (``--help`` lists them). Frames, tables, figures and the report are written to
``runs/exercise1_2ndpart``, or to ``--output-dir``.
"""

import sys

from tune_hpc.cli import run_and_exit

if __name__ == "__main__":
    run_and_exit(["run", "exercise1_2ndpart", *sys.argv[1:]])

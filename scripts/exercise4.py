"""Exercise 4: training time on 1, 2 and 4 workers with Ray Train.

    python scripts/exercise4.py --quick

Flags are those of ``tune-hpc run`` (``--help`` lists them). Frames, tables, figures and the report are written to
``runs/exercise4``, or to ``--output-dir``.
"""

import sys

from tune_hpc.cli import run_and_exit

if __name__ == "__main__":
    run_and_exit(["run", "exercise4", *sys.argv[1:]])

"""Exercise 3: as much accuracy as one CNN will give, table by table (4.1 to 4.6).

    python scripts/exercise3.py --quick

Flags are those of ``tune-hpc run`` (``--help`` lists them). Frames, tables, figures and the report are written to
``runs/exercise3``, or to ``--output-dir``.
"""

import sys

from tune_hpc.cli import run_and_exit

if __name__ == "__main__":
    run_and_exit(["run", "exercise3", *sys.argv[1:]])

"""Exercise 2: nine optimizers at eight learning rates on MNIST, for softmax regression and the CNN.

    python scripts/exercise2.py --quick

Flags are those of ``tune-hpc run`` (``--help`` lists them). Frames, tables, figures and the report are written to
``runs/exercise2``, or to ``--output-dir``.
"""

import sys

from tune_hpc.cli import run_and_exit

if __name__ == "__main__":
    run_and_exit(["run", "exercise2", *sys.argv[1:]])

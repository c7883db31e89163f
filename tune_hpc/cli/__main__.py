"""``python -m tune_hpc.cli COMMAND``."""

from tune_hpc.cli.main import run_and_exit

run_and_exit()

"""The command line: ``tune-hpc COMMAND``. It parses flags, calls the library and prints results; it has no logic."""

from tune_hpc.cli.main import FAILURE, INTERRUPTED, REQUEUE, SUCCESS, TERMINATED, USAGE, main, run_and_exit

__all__ = ["FAILURE", "INTERRUPTED", "REQUEUE", "SUCCESS", "TERMINATED", "USAGE", "main", "run_and_exit"]

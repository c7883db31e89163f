"""Loader of an experiment folder of tune_hpc."""

import sys

import pandas as pd

from benchmarks.peers.loading import GROUPS, print_loading_time
from tune_hpc.analysis.results import load


def frames() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the two frames of the folder."""
    results = load(sys.argv[1])
    return results.trials, results.history


if __name__ == "__main__":
    print_loading_time(frames, GROUPS)

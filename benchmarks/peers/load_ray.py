"""Loader of Ray Tune's trial folders, as ``ray.tune.ExperimentAnalysis``: each result.json line by line."""

import json
import sys
from pathlib import Path

import pandas as pd

from benchmarks.peers.loading import GROUPS, print_loading_time


def frames() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the last row of each trial, and all rows."""
    histories = []
    for file in sorted(Path(sys.argv[1]).glob("*/result.json")):
        lines = file.read_text(encoding="utf-8").rstrip("\n").split("\n")
        histories.append(pd.json_normalize([json.loads(line) for line in lines], sep="/"))
    return pd.DataFrame([one.iloc[-1].to_dict() for one in histories]), pd.concat(histories, ignore_index=True)


if __name__ == "__main__":
    print_loading_time(frames, [f"config/{name}" for name in GROUPS])

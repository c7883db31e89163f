"""What a search decided while it ran, as data frames: who came to which rung, and who copied whom."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from tune_hpc.errors import FolderError


def rungs_frame(file: Path, num_seeds: int) -> pd.DataFrame:
    """Return who came to which rung; see ``Results.rungs``.

    Args:
        file: rungs.jsonl.
        num_seeds: How many trials a configuration has.

    Raises:
        FolderError: it cannot be read.
    """

    def read(lines: list[dict[str, Any]]) -> pd.DataFrame:
        went_on = {
            (line["configuration"], line["rung"] - 1) for line in lines if line["event"] in ("promoted", "goes on")
        }
        rows = [
            {
                "rung": line["rung"] + 1,
                "trial_id": f"t{line['configuration'] * num_seeds:05d}",
                "step": line["steps"],
                "value": line["value"],
                "goes_on": (line["configuration"], line["rung"]) in went_on,
            }
            for line in lines
            if line["event"] in ("reached", "came")
        ]
        return pd.DataFrame(rows, columns=["rung", "trial_id", "step", "value", "goes_on"])

    return _read(file, read)


def generations_frame(file: Path) -> pd.DataFrame:
    """Return what each member of a population was in each generation but the first; see ``Results.generations``.

    Args:
        file: population.jsonl.

    Raises:
        FolderError: it cannot be read.
    """

    def read(lines: list[dict[str, Any]]) -> pd.DataFrame:
        rows = [
            {
                "generation": line["generation"],
                "trial_id": trial_id,
                **{name: member[name] for name in ("copied_from", "value")},
                **member["config"],
            }
            for line in lines
            for trial_id, member in line["members"].items()
        ]
        return pd.DataFrame(rows)

    return _read(file, read)


def _read(file: Path, read: Callable[[list[dict[str, Any]]], pd.DataFrame]) -> pd.DataFrame:
    try:
        # A last line without an end is being written.
        whole, _, _ = file.read_text(encoding="utf-8").rpartition("\n")
        return read([json.loads(line) for line in whole.splitlines()])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FolderError(f"{file} cannot be read: {error}; restore it from a copy") from error

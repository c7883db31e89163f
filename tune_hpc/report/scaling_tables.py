"""What a scaling measurement says beyond what it timed: its model against the clock, other links, cost.

The model itself is in ``tune_hpc.scaling.step_time_model``; a measurement leaves what it says in experiment.json.
"""

from typing import Any

import pandas as pd

from tune_hpc.analysis.aggregation import aggregate_seeds
from tune_hpc.analysis.results import Results
from tune_hpc.errors import UnknownNameError

#: The link of the predictions that are of the measured workers themselves.
MEASURED_LINK = "this machine"
#: What tells measured cases apart, as the predictions do.
CASE = ("mode", "width", "batch_size")
#: How gradients are exchanged where nothing else was asked for; the model is of that.
_PLAINLY = {"bucket_view": False, "compression": "none", "local_steps": 1, "batches_per_step": 1}


def predictions(results: Results) -> pd.DataFrame:
    """Return what the model says of a step: a row for each link, width, mode and number of workers.

    Returns:
        ``link``, ``workers``, ``mode``, ``width``, ``batch_size``, ``step_s``, ``compute_s``, ``communicate_s``,
        ``samples_per_s``, ``speedup`` and ``efficiency``. The link ``this machine`` is the measured workers themselves.

    Raises:
        UnknownNameError: the results are no scaling measurement, or one of before there was a model.
    """
    rows = results.experiment.get("predictions") or []
    if not rows:
        raise UnknownNameError(f"{results.name} holds no predictions; tune-hpc scale makes some")
    return pd.DataFrame(rows)


def predicted_against_measured(results: Results) -> pd.DataFrame:
    """Return each measured step of several workers beside what the model says of it.

    The model saw none of them: it is calibrated on probes.

    Returns:
        ``workers``, ``mode``, ``width``, ``batch_size``, ``measured_s`` (median over the repeats), ``predicted_s`` and
        ``error``, a part of what was measured.

    Raises:
        UnknownNameError: as for ``predictions``.
    """
    said = predictions(results)
    said = said[said["link"] == MEASURED_LINK]
    trials = baseline_rows(results)
    keys = ["workers", *CASE]
    trials = trials.assign(width=network_widths(trials))
    measured = trials[trials["workers"] > 1].groupby(keys, sort=False)["step_s"].median().rename("measured_s")
    table = measured.reset_index().merge(said[[*keys, "step_s"]].rename(columns={"step_s": "predicted_s"}), on=keys)
    return table.assign(error=table["predicted_s"] / table["measured_s"] - 1)


def baseline_rows(results: Results) -> pd.DataFrame:
    """Return the trials that exchanged their gradients as is done where nothing else is asked for."""
    trials = results.trials
    for name, value in _PLAINLY.items():
        if name in trials:
            trials = trials[trials[name] == value]
    return trials


def network_widths(trials: pd.DataFrame) -> pd.Series:
    """Return the width of each trial's network, as the predictions call it; 1 for a model that has none."""
    known = trials["width"] if "width" in trials else pd.Series(1.0, index=trials.index)
    return known.astype(float).fillna(1.0)


def min_efficient_width(results: Results) -> pd.DataFrame:
    """Return from which width of the network on workers keep enough of their speed.

    Returns:
        ``link``, ``workers``, ``aim`` (an efficiency), ``width`` (missing where none of the probed widths reaches it),
        ``best_efficiency`` of all widths and ``best_width``, ``narrowest`` and ``widest`` of those probed.

    Raises:
        UnknownNameError: only one width was probed, or the results are no scaling measurement.
    """
    rows = results.experiment.get("widths") or []
    if not rows:
        raise UnknownNameError(f"{results.name} probed no networks of several widths")
    return pd.DataFrame(rows).astype({"width": float})


def cost_pareto_front(results: Results) -> pd.DataFrame:
    """Return what time costs: the seconds of a training against those of all its workers together.

    Returns:
        The configurations of a scaling measurement with ``train_s`` and ``worker_s`` (means over the repeats) and
        ``is_efficient``: no other one of the same work, with other workers or another option, takes less of both.

    Raises:
        UnknownNameError: the results are no scaling measurement.
    """
    if "worker_s" not in results.trials:
        raise UnknownNameError(f"{results.name} has no column worker_s; tune-hpc scale measures it")
    names = [name for name in results.varied_parameters if name != "seed"]
    table = aggregate_seeds(results, ["train_s", "worker_s"]).dropna(subset=["train_s", "worker_s"])
    table = table[[*(name for name in names if name in table), "train_s", "worker_s"]]
    table = table.reset_index(drop=True)
    others = [name for name in names if name in table and name not in ("workers", "option")]
    work = table.groupby(others, dropna=False).ngroup() if others else pd.Series(0, index=table.index)
    parts = [pd.Series(_efficient(own), index=own.index) for own in (table[work == one] for one in work.unique())]
    return table.assign(is_efficient=pd.concat(parts) if parts else pd.Series(dtype=bool))


def _efficient(table: pd.DataFrame) -> list[bool]:
    """Return which rows no other one beats, in seconds and in those of all workers."""
    pairs: list[Any] = list(zip(table["train_s"], table["worker_s"], strict=True))
    return [
        not any(
            other[0] <= own[0] and other[1] <= own[1] and other != own and (other[0] < own[0] or other[1] < own[1])
            for other in pairs
        )
        for own in pairs
    ]

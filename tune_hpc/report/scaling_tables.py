"""Tables of a scaling measurement, whose experiment.json has the predictions of the step-time model."""

import numpy as np
import pandas as pd

from tune_hpc.analysis.aggregation import COMPLETED, aggregate_seeds, searched_parameters
from tune_hpc.analysis.results import Results
from tune_hpc.errors import UnknownNameError
from tune_hpc.scaling.step_time_model import MEASURED_LINK

#: Default settings of the gradient exchange, which the model describes.
DEFAULT_EXCHANGE = {"bucket_mb": 25.0, "bucket_view": False, "compression": "none", "local_steps": 1}


def predictions(results: Results) -> pd.DataFrame:
    """Return the predicted steps: one row per link, width, mode and number of workers.

    Returns:
        ``link``, ``workers``, ``mode``, ``width``, ``batch_size``, ``step_s``, ``compute_s``, ``communicate_s``,
        ``samples_per_s``, ``speedup`` and ``efficiency``. The link ``this machine`` is that of the measured workers.

    Raises:
        UnknownNameError: The results are no scaling measurement, or one of a version without the model.
    """
    rows = results.experiment.get("predictions") or []
    if not rows:
        raise UnknownNameError(f"{results.name} has no predictions; make them with tune-hpc scale")
    return pd.DataFrame(rows)


def predicted_against_measured(results: Results) -> pd.DataFrame:
    """Return measured step times of several workers with the predictions, which are made from probes only.

    Returns:
        ``workers``, ``mode``, ``width``, ``batch_size``, ``measured_s`` (mean over the repeats), ``predicted_s`` and
        the relative ``error``.

    Raises:
        UnknownNameError: As for ``predictions``.
    """
    predicted = predictions(results)
    keys = ["workers", "mode", "width", "batch_size"]
    predicted = predicted.loc[predicted["link"] == MEASURED_LINK, [*keys, "step_s"]]
    trials = baseline_trials(results)
    measured = trials[trials["workers"] > 1].groupby(keys, sort=False)["step_s"].mean().rename("measured_s")
    table = measured.reset_index().merge(predicted.rename(columns={"step_s": "predicted_s"}), on=keys)
    return table.assign(error=table["predicted_s"] / table["measured_s"] - 1)


def baseline_trials(results: Results) -> pd.DataFrame:
    """Return the completed trials that the model describes: no added convolutions, the default gradient exchange.

    A model without a width has ``width`` 1.
    """
    trials = results.trials[results.trials["status"].isin(COMPLETED)]
    for name, value in (DEFAULT_EXCHANGE | {"batches_per_step": 1, "depth": 0}).items():
        if name in trials:
            trials = trials[trials[name] == value]
    widths = trials["width"] if "width" in trials else pd.Series(1.0, index=trials.index)
    return trials.assign(width=widths.astype(float).fillna(1.0))


def min_efficient_width(results: Results) -> pd.DataFrame:
    """Return the smallest network width with a certain efficiency, for each number of workers.

    Returns:
        ``link``, ``workers``, ``aim`` (an efficiency), ``width`` (missing if no probed width reaches it),
        ``best_efficiency`` of all widths and ``best_width``, ``narrowest`` and ``widest`` probed width.

    Raises:
        UnknownNameError: Only one width was probed, or the results are no scaling measurement.
    """
    rows = results.experiment.get("widths") or []
    if not rows:
        raise UnknownNameError(f"{results.name} has no probes of several network widths")
    return pd.DataFrame(rows).astype({"width": float})


def cost_pareto_front(results: Results) -> pd.DataFrame:
    """Return time and cost of a training: its seconds, and the seconds of all workers together.

    Returns:
        The configurations of a scaling measurement with ``train_s`` and ``worker_s`` (means over the repeats) and
        ``is_efficient``: no configuration of the same work, with other workers or another option, is better in both.

    Raises:
        UnknownNameError: The results are no scaling measurement.
    """
    if "worker_s" not in results.trials:
        raise UnknownNameError(f"{results.name} has no column worker_s; measure it with tune-hpc scale")
    table = aggregate_seeds(results, ["train_s", "worker_s"]).dropna(subset=["train_s", "worker_s"])
    names = [name for name in searched_parameters(results) if name in table]
    table = table[[*names, "train_s", "worker_s"]].reset_index(drop=True)
    others = [name for name in names if name not in ("workers", "option")]
    work = table.groupby(others, dropna=False).ngroup().to_numpy() if others else np.zeros(len(table))
    costs = table[["train_s", "worker_s"]].to_numpy()
    # Element [i, j]: whether configuration j dominates configuration i.
    dominates = (costs <= costs[:, None]).all(axis=2) & (costs < costs[:, None]).any(axis=2)
    return table.assign(is_efficient=~(dominates & (work == work[:, None])).any(axis=1))

"""Best configurations and trials of a search, and the direction of a metric."""

import shutil
from typing import TYPE_CHECKING, Any

import pandas as pd

from tune_hpc.analysis.aggregation import (
    COMPLETED,
    aggregate_seeds,
    configuration_numbers,
    describe_statuses,
    extrapolation_note,
    searched_parameters,
    sort_configurations,
)
from tune_hpc.analysis.formatting import format_value
from tune_hpc.analysis.frame_query import with_nullable_integers
from tune_hpc.errors import UnknownNameError
from tune_hpc.storage.trial_file import row_to_config

if TYPE_CHECKING:
    from tune_hpc.analysis.results import Results


class Ranking(pd.DataFrame):
    """Data frame whose text has all columns, in several blocks if they are wider than the terminal."""

    def __repr__(self) -> str:
        return self.to_string(line_width=shutil.get_terminal_size().columns)


def top(results: "Results", n: int, metric: str, mode: str | None) -> Ranking:
    """Return the best ``n`` configurations; see ``Results.top``."""
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise UnknownNameError(f"the number of configurations must be a whole number of at least 1; got {n!r}")
    columns = [*dict.fromkeys([*searched_parameters(results), metric, f"{metric}_deviation", "num_seeds"])]
    df = with_nullable_integers(ranked_configurations(results, metric, mode)[columns])
    return Ranking(df.head(n).reset_index(drop=True))


def ranked_configurations(results: "Results", metric: str, mode: str | None) -> pd.DataFrame:
    """Return the configurations with a value of a metric, best first."""
    _check_column(results, metric)
    return sort_configurations(results, aggregate_seeds(results, [metric]), metric, mode)


def best_configuration(results: "Results", metric: str, mode: str | None) -> pd.Series:
    """Return the best row of ``ranked_configurations``; none is an error."""
    ranked = ranked_configurations(results, metric, mode)
    if ranked.empty:
        raise UnknownNameError(
            f"no configuration of {results.name} has a value of {metric} and neither a diverged nor a failed seed "
            f"({results.failures or describe_statuses(results) or 'no trials'})"
        )
    return ranked.iloc[0]


def best_trial(results: "Results", metric: str, mode: str | None) -> pd.Series:
    """Return the best single trial as a row of ``trials``; none is an error."""
    _check_column(results, metric)
    completed = results.trials[results.trials["status"].isin(COMPLETED)].dropna(subset=[metric])
    if completed.empty:
        reason = results.failures or describe_statuses(results) or "no trials"
        raise UnknownNameError(f"no trial of {results.name} finished with a value of {metric}: {reason}")
    return completed.sort_values(metric, ascending=is_lower_better(results, metric, mode), kind="stable").iloc[0]


def config_of(results: "Results", configuration: pd.Series) -> dict[str, Any]:
    """Return a row of ``aggregate_seeds`` as a configuration with the types of its values."""
    first = results.trials[(configuration_numbers(results) == configuration.name).to_numpy()].iloc[0]
    config = row_to_config(first.to_dict())
    names = [name for name in results.config_columns if name != "seed" and name in config]
    # In rows of early releases a parameter without a value is NaN.
    return {name: config[name] for name in names if config[name] == config[name]}


def is_lower_better(results: "Results", metric: str, mode: str | None) -> bool:
    """Return whether a metric is best when low; see ``Results.is_lower_better``."""
    declared = {**results.experiment.get("metrics", {}), results.metric: results.experiment["mode"]}
    mode = declared.get(metric) if mode is None else mode
    if mode is not None:
        if mode not in ("min", "max"):
            raise UnknownNameError(f"mode must be min or max; got {mode!r}")
        return mode == "min"
    if metric.endswith("loss") or (metric.endswith("_s") and not metric.endswith("_per_s")):
        return True
    if metric.endswith(("accuracy", "_per_s", "speedup", "efficiency")):
        return False
    raise UnknownNameError(
        f"the direction of {metric} in {results.name} is unknown: give the mode min or max, or declare it in the "
        f"experiment, as metrics={{{metric!r}: 'min'}}"
    )


def summary(results: "Results") -> str:
    """Return one line: the number of trials by status, the best configuration, or the first error without any."""
    counts = describe_statuses(results)
    text = f"{results.name}: {len(results.trials)} trials" + (f" ({counts})" if counts else "")
    if _has_only_failures(results):
        return f"{text}; {results.failures}"
    try:
        best = best_configuration(results, results.metric, None)
    except UnknownNameError:
        return text
    values = config_of(results, best)
    names = [name for name in searched_parameters(results) if name in values]
    config = ", ".join(f"{name}={format_value(values[name], 4)}" for name in names)
    value = f"{best[results.metric]:.4g}{extrapolation_note(results, results.metric)}"
    return f"{text}; best {results.metric} {value}" + (f" with {config}" if config else "")


def _check_column(results: "Results", metric: str) -> None:
    trials = results.trials
    if metric not in trials and _has_only_failures(results):
        raise UnknownNameError(f"no trial of {results.name} has a value of {metric}: {results.failures}")
    if metric not in trials:
        raise UnknownNameError(
            f"no column {metric!r} in the trials of {results.name}; there are {', '.join(map(str, trials))}"
        )
    if not pd.api.types.is_numeric_dtype(trials[metric]):
        numeric = ", ".join(trials.select_dtypes("number").columns)
        raise UnknownNameError(f"column {metric} of {results.name} is not numeric; numeric columns are {numeric}")


def _has_only_failures(results: "Results") -> bool:
    return bool(results.failures) and not results.trials["status"].isin(COMPLETED).any()

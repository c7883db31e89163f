"""Commands that read results: show, compare, report."""

import argparse
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tune_hpc.errors import InvalidExperimentError, UnknownNameError
from tune_hpc.storage.process import may_be_running

if TYPE_CHECKING:
    from tune_hpc.analysis.results import Results


def show(flags: argparse.Namespace) -> int:
    """Print the number of trials by status, the best configurations, and the trials without a result."""
    from tune_hpc.analysis.loading import load_all
    from tune_hpc.analysis.value_labels import with_value_labels
    from tune_hpc.report.tables import best_configurations, to_markdown, trials_with_status
    from tune_hpc.storage.experiment_folder import ExperimentFolder

    if flags.n < 1:
        raise InvalidExperimentError(f"-n must be at least 1; got {flags.n}")
    for results in map(with_value_labels, load_all(flags.folder)):
        print(summary(results, flags.metric, flags.mode))
        if unfinished := _unfinished(results):
            print(f"{results.name}: {unfinished}")
        if results.failures:
            print(f"{results.name}: {results.failures}")
        print(to_markdown(best_configurations(results, flags.n, flags.metric, flags.mode)), end="\n\n")
        for status in ("failed", "diverged", "running"):
            trials = trials_with_status(results, status).head(flags.n)
            if len(trials):
                print(f"{status}:\n{to_markdown(trials)}", end="\n\n")
                if status == "failed" and results.folder:
                    print(f"tracebacks: {ExperimentFolder(results.folder).logs}", end="\n\n")
    return 0


def _unfinished(results: "Results") -> str:
    """Return how many trials of an unfinished search have ended, and how to resume it; empty for other results."""
    experiment = results.experiment
    if results.folder is None or experiment.get("state") in (None, "finished") or experiment.get("runner") != "search":
        return ""
    num_ended = len(results.trials) - results.counts().get("running", 0)
    is_running = experiment["state"] == "running" and may_be_running(experiment.get("process"))
    remedy = "it is running" if is_running else f"to resume: tune-hpc resume {shlex.quote(str(results.folder))}"
    return f"{num_ended} of {experiment.get('num_trials')} trials have ended; {remedy}"


def summary(results: "Results", metric: str | None = None, mode: str | None = None) -> str:
    """Return one line: the number of trials by status, and the best configuration."""
    from tune_hpc.analysis.aggregation import extrapolation_note, searched_parameters
    from tune_hpc.analysis.formatting import format_value

    counts = ", ".join(f"{count} {status}" for status, count in results.counts().items())
    text = f"{results.name}{' (quick)' if results.experiment.get('quick') else ''}: {counts or 'no trials'}"
    try:
        best = results.best(metric, mode)
    except UnknownNameError:
        if metric:
            raise
        return text
    column = metric or results.metric
    # A parameter whose condition is false has no value.
    names = [name for name in searched_parameters(results) if best[name] == best[name]]
    texts = {name: "None" if best[name] is None else format_value(best[name]) for name in names}
    where = ", ".join(f"{name}={text}" for name, text in texts.items())
    note = extrapolation_note(results, column)
    return f"{text}; best {column.removeprefix('best_')} {best[column]:.4g}{note}{f' at {where}' if where else ''}"


def _differing_constants(searches: Sequence["Results"]) -> str:
    """Return the parameters that each search fixes, and not all at the same value."""
    from tune_hpc.analysis.formatting import format_value

    texts = []
    for name in dict.fromkeys(name for results in searches for name in results.config_columns if name != "seed"):
        columns = [results.trials.get(name) for results in searches]
        values = [None if column is None else column.iloc[0] for column in columns if column is None or len(column)]
        is_fixed = not any(name in results.varied_parameters for results in searches)
        labels = ["none" if value is None or value != value else format_value(value) for value in values]
        if is_fixed and len(set(labels)) > 1:
            texts.append(f"{name} ({', '.join(labels)})")
    return ", ".join(texts)


def compare(flags: argparse.Namespace) -> int:
    """Print a comparison of searches, or of the values of a parameter."""
    from tune_hpc.analysis.concatenation import SEARCH, concat, unique_names
    from tune_hpc.analysis.loading import load_all
    from tune_hpc.analysis.value_labels import with_value_labels
    from tune_hpc.report.tables import to_markdown, values_table

    searches = [one for folder in flags.folders for one in load_all(folder)]
    if len(searches) == 1 and not flags.by:
        varying = ", ".join(name for name in searches[0].varied_parameters if name != "seed")
        raise InvalidExperimentError(
            f"{searches[0].name} is one search; name another folder, or a parameter: --by {varying}"
        )
    results = concat(searches) if len(searches) > 1 else searches[0]
    ranking = with_value_labels(results).compare(flags.by or SEARCH, flags.metric, mode=flags.mode)
    print(f"{ranking}\n\n{to_markdown(values_table(ranking))}")
    if constants := _differing_constants(searches):
        print(f"\nThe searches also differ in {constants}.")
    if flags.output:
        from tune_hpc.report.report import write_report

        names = " and ".join(unique_names(searches))
        title = f"{names} by {ranking.parameter}" if len(searches) == 1 else f"{names} compared"
        page = write_report(searches, flags.output, title, in_folders=False, importance=importance, comparison=ranking)
        print(f"\nreport: {page}")
    return 0


def report(flags: argparse.Namespace) -> int:
    """Write the report of some searches, and print its path."""
    from tune_hpc.analysis.loading import load_all
    from tune_hpc.report.report import write_report
    from tune_hpc.storage.filesystem import Storage

    results = [one for folder in flags.folders for one in load_all(folder)]
    page = Storage(flags.output).root if flags.output else Storage(flags.folders[0]).root / "report.html"
    print(write_report(results, page, importance=importance))
    return 0


def importance(results: "Results") -> Any:
    """Return parameter importances; import Ray and Optuna, which takes seconds, only for several parameters."""
    if len([name for name in results.varied_parameters if name != "seed"]) < 2:
        raise UnknownNameError(f"{results.name} varies fewer than two parameters; importances compare several")
    from tune_hpc.search import importance as module

    return module.importance(results)

"""The command line: flags to calls and results to text, and no logic of its own.

Heavy modules are imported by the verb that needs them, so that ``--help`` answers at once and a verb that only reads
pays neither for torch nor for Ray.
"""

import argparse
import gc
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tune_hpc import __version__
from tune_hpc.cli import jobs as verbs
from tune_hpc.cli.options import PLACE_FLAGS, add_place_flags, add_run_flags, add_scale_flags, find_experiments
from tune_hpc.cli.serve import add_serve_verb
from tune_hpc.cli.slurm import add_slurm_verb
from tune_hpc.errors import InvalidExperimentError, TuneHpcError, UnknownNameError

if TYPE_CHECKING:
    from tune_hpc.analysis.results import Results
    from tune_hpc.search.experiment import Experiment

_EXAMPLES = """\
examples:
  tune-hpc spaces                                        what there is to run
  tune-hpc run exercise2.softmax                         one stage, at full size
  tune-hpc run exercise3 --quick                         all stages of an exercise, at a size for a first look
  tune-hpc run exercise3.winner --seeds 5 --set dropout=0.4,0.5
  tune-hpc run exercise2.softmax --set 'learning_rate=loguniform(1e-4, 1)' --searcher tpe --num-samples 100
  tune-hpc run my_search:experiment                      an experiment of your own, from my_search.py
  tune-hpc run my_search:train --set x=1,2,3 --metric loss --mode min
  tune-hpc resume runs/exercise3                         go on after an interrupt
  tune-hpc extend runs/exercise2.softmax --num-samples 50
  tune-hpc show runs/exercise2.softmax                   the best trials
  tune-hpc compare runs/exercise2.softmax --by optimizer which is better, and how sure that is
  tune-hpc report runs/exercise2.softmax                 tables, figures and report.html
  tune-hpc export runs/exercise2.softmax --to tensorboard
  tune-hpc submit exercise2.softmax --address http://head:8265 --storage /nfs/jobs
  tune-hpc status ID; tune-hpc logs ID --follow; tune-hpc stop ID; tune-hpc resume ID; tune-hpc fetch ID
  tune-hpc delete ID
"""

#: Ends well, failed, wrong input, to be queued again (a batch system's warning came), interrupted, terminated.
SUCCESS, FAILURE, USAGE, REQUEUE, INTERRUPTED, TERMINATED = 0, 1, 2, 75, 130, 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: What follows the program's name; by default those of this process.

    Returns:
        0; 1 when no trial of an experiment came to a result; 2 on wrong input; 75 when a batch system's SIGUSR1 ended
        a run, which is then to be resumed; 130 when one was interrupted; 143 when SIGTERM ended one.
    """
    parsed = _parser().parse_args(arguments)
    # What takes a while says so: fetching a data set, for instance. Ray's own loggers stay as they are.
    log, to_terminal = logging.getLogger("tune_hpc"), _ToTerminal()
    log.addHandler(to_terminal)
    log.setLevel(logging.INFO)
    try:
        return int(parsed.verb(parsed))
    except TuneHpcError as error:
        print(f"tune-hpc: {' '.join(str(error).split())}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("tune-hpc: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has what it wanted; Python would complain once more when it flushes at exit.
        sys.stdout = None
        return SUCCESS
    finally:
        log.removeHandler(to_terminal)


class _ToTerminal(logging.StreamHandler):
    """Writes to standard error as it is at that moment: above the progress bar while there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def run_and_exit(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command, and end the process with its exit code."""
    code = main(arguments)
    # Python's last collection would walk all that Ray and pandas imported, for half a second.
    gc.freeze()
    sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="tune-hpc", description="Hyperparameter search on Ray.", epilog=_EXAMPLES, formatter_class=raw,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"tune-hpc {__version__}")
    commands = parser.add_subparsers(required=True, metavar="VERB")

    def add(name: str, verb: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, formatter_class=raw, allow_abbrev=False)
        sub.set_defaults(verb=verb)
        return sub

    run = add("run", _run, "run experiments and write their results")
    run.epilog = _EXAMPLES
    add_run_flags(run)
    run.add_argument("names", nargs="+", metavar="NAME", help="an exercise, a stage, all, or package.module:attribute")

    scale = add("scale", _scale, "time a configuration on several workers, and say where the time goes")
    add_scale_flags(scale)

    going_on = {
        "resume": "go on with searches that ended before their time; what ended is kept",
        "extend": "add configurations to a search; its searcher knows all that was tried",
    }
    for name, text in going_on.items():
        verb = add(name, _go_on, text)
        verb.add_argument("folder", metavar="FOLDER", help="an experiment folder, or the id of a job")
        verbs.add_storage_flags(verb, writes=True)
        verb.add_argument(
            "--force", action="store_true",
            help="although nothing is known of the driver that ran it; that one stops if it still runs",
        )  # fmt: skip
        verb.set_defaults(num_samples=None)
        if name == "extend":
            verb.add_argument("--num-samples", type=int, metavar="N", required=True, help="how many more to try")
        add_place_flags(verb)
        verb.add_argument("--no-report", action="store_true", help="write the data frames only")

    show = add("show", _show, "show the counts and the best trials of an experiment folder")
    show.add_argument("folder", metavar="FOLDER")
    show.add_argument("-n", type=int, default=10, help="trials to show (default: 10)")
    show.add_argument("--metric", help="rank by this column (default: the experiment's metric)")

    compare = add(
        "compare", _compare, "say which search, or which value of a parameter, is better, and how sure that is"
    )
    compare.add_argument("folders", nargs="+", metavar="FOLDER")
    compare.add_argument("--by", metavar="PARAMETER", help="whose values to compare (default: the searches)")
    compare.add_argument("--metric", help="compare by this column (default: the experiment's metric)")
    compare.add_argument("-o", "--output", metavar="FILE", help="also write a page, with the searches' own sections")

    report = add("report", _report, "write tables, figures and report.html of experiment folders")
    report.add_argument("folders", nargs="+", metavar="FOLDER")
    report.add_argument("-o", "--output", metavar="FILE", help="where the page goes (default: in the first folder)")

    export = add("export", _export, "show searches, finished or not, in TensorBoard, Optuna's dashboard or MLflow")
    export.add_argument("folders", nargs="+", metavar="FOLDER")
    export.add_argument(
        "--to", action="append", required=True, metavar="TOOL",
        help="tensorboard, optuna or mlflow; repeatable, or a list (a,b)",
    )  # fmt: skip
    export.add_argument(
        "--where", metavar="PLACE", help="a folder, a file, a storage's or a server's URL (default: in the folder)"
    )
    export.add_argument("--follow", action="store_true", help="go on until the searches have ended")

    verbs.add_job_verbs(add)
    add_serve_verb(add)
    add_slurm_verb(add)

    spaces = add("spaces", _spaces, "list the experiments with their sizes and parameters")
    spaces.add_argument("names", nargs="*", metavar="NAME", help="these only, with every parameter")

    data = add("data", _data, "find or fetch the image data and say where they are")
    data.add_argument("names", nargs="*", default=["mnist"], metavar="NAME", help="mnist (default), fashion_mnist")
    data.add_argument("--data-dir", metavar="DIR", help="where they are, or are to be put")
    return parser


def _run(flags: argparse.Namespace) -> int:
    experiments = [experiment for name in flags.names for experiment in find_experiments(name, flags)]
    first, *others = flags.names
    # A folder's name has 255 characters at most.
    name = "-".join(flags.names) if len(others) < 4 else f"{first}-and-{len(others)}-others"
    return run_experiments(experiments, name.replace(":", "."), flags)


def _scale(flags: argparse.Namespace) -> int:
    from tune_hpc.scaling.plan import OPTIONS
    from tune_hpc.search.experiment_registry import experiments_named
    from tune_hpc.search.space.parsing import parse_settings

    if flags.option == "all":
        flags.option = ",".join(OPTIONS)
    own = {name: getattr(flags, name) for name in ("workers", "option", "mode", "repeats", "num_timed_steps")}
    settings = [f"{name}={value}" for name, value in own.items() if value is not None]
    (experiment,) = experiments_named("exercise4")
    experiment = experiment.quick_version() if flags.quick else experiment
    chosen = experiment.with_values(parse_settings([*flags.settings, *settings]))
    if set(chosen.space.varying) - {"workers"}:
        # Its figures are of one configuration; of several there are standard ones, with a line for each.
        chosen = chosen.replace(figures=())
    return run_experiments([chosen], "scaling", flags, spread=flags.spread, max_restarts=flags.max_restarts)


def run_experiments(experiments: list["Experiment"], name: str, flags: argparse.Namespace, **own: Any) -> int:
    """Run experiments, write what comes of them, and print it in short.

    Args:
        experiments: What to run.
        name: The folder below ``runs/`` where ``--output-dir`` is not given.
        flags: Those of ``add_run_flags``.
        **own: What only their runner knows.

    Returns:
        The exit code.
    """
    from tune_hpc.jobs.launch import folders_in, launch
    from tune_hpc.storage.experiment_folder import new_folder
    from tune_hpc.storage.filesystem import here

    if flags.go_on and not flags.output_dir:
        raise InvalidExperimentError("--resume needs --output-dir, the folder that holds what is to go on")
    if flags.go_on and flags.overwrite:
        raise InvalidExperimentError("--resume keeps what is there and --overwrite removes it; give one of them")
    parent = here(flags.output_dir) if flags.output_dir else new_folder(name)
    options = {key: getattr(flags, key) for key in ("overwrite", "go_on", "force", *PLACE_FLAGS)} | own
    if flags.warm_start:
        options["warm_start"] = flags.warm_start
    results = launch(experiments, folders_in(parent, experiments), **options)
    return _tell(results, None if flags.no_report else parent / "report.html")


def _go_on(flags: argparse.Namespace) -> int:
    """Resume the searches of a folder, or extend the one that it holds; or do so with a job."""
    if verbs.is_job(flags.folder):
        return verbs.restart(flags)
    from tune_hpc.analysis.results import load_all
    from tune_hpc.search.runner import extend, resume
    from tune_hpc.storage.filesystem import here

    options = {key: getattr(flags, key) for key in (*PLACE_FLAGS, "force")}
    if flags.num_samples is not None:
        extend(flags.folder, num_samples=flags.num_samples, **options)
    else:
        resume(flags.folder, **options)
    return _tell(load_all(flags.folder), None if flags.no_report else here(flags.folder) / "report.html")


def _tell(results: Sequence["Results"], page: Path | None) -> int:
    """Print what came of some experiments, write the report, and return the exit code."""
    for one in results:
        print(_in_short(one))
    if page is not None:
        from tune_hpc.report.report import write_report

        print(f"report: {write_report(results, page, importance=_importance)}")
    states = {one.experiment["state"] for one in results}
    for one in results:
        if one.experiment.get("ended_by"):
            print(f"{one.name}: {one.experiment['ended_by']}; `tune-hpc resume {one.folder}` goes on")
    if any(one.experiment.get("is_to_be_requeued") for one in results):
        return REQUEUE
    if any(one.experiment.get("is_terminated") for one in results):
        return TERMINATED
    if "interrupted" in states:
        return INTERRUPTED
    return FAILURE if any(not {"finished", "stopped"} & set(one.counts()) for one in results) else SUCCESS


def _show(flags: argparse.Namespace) -> int:
    from tune_hpc.analysis.results import load_all
    from tune_hpc.report.tables import best_trials, to_markdown, unfinished
    from tune_hpc.storage.experiment_folder import ExperimentFolder

    if flags.n < 1:
        raise InvalidExperimentError(f"-n must be at least 1; got {flags.n}")
    for one in load_all(flags.folder):
        print(_in_short(one, flags.metric))
        print(to_markdown(best_trials(one, flags.n, flags.metric)), end="\n\n")
        for status in ("failed", "diverged", "running"):
            trials = unfinished(one, status).head(flags.n)
            if len(trials):
                print(f"{status}:\n{to_markdown(trials)}", end="\n\n")
                if status == "failed" and one.folder:
                    print(f"tracebacks: {ExperimentFolder(one.folder).logs}", end="\n\n")
    return SUCCESS


def _in_short(results: "Results", metric: str | None = None) -> str:
    """Return one line: how many trials of which status, and the best."""
    counts = ", ".join(f"{count} {status}" for status, count in results.counts().items())
    text = f"{results.name}{' (quick)' if results.experiment.get('quick') else ''}: {counts or 'no trials'}"
    try:
        best = results.best(metric)
    except UnknownNameError:
        if metric:
            raise
        return text
    column = metric or results.metric
    # A parameter whose condition does not hold has no value.
    where = ", ".join(f"{key}={best[key]}" for key in results.varying if best[key] == best[key])
    return f"{text}; best {column} {best[column]:.4g}{f' at {where}' if where else ''}"


def _compare(flags: argparse.Namespace) -> int:
    from tune_hpc.analysis.concat import SEARCH, join, names_of
    from tune_hpc.analysis.results import load_all
    from tune_hpc.report.tables import ranking_table, to_markdown

    searches = [one for folder in flags.folders for one in load_all(folder)]
    if len(searches) == 1 and not flags.by:
        varying = ", ".join(name for name in searches[0].varying if name != "seed")
        raise InvalidExperimentError(
            f"{searches[0].name} is one search; name another folder, or a parameter: --by {varying}"
        )
    results = join(searches) if len(searches) > 1 else searches[0]
    ranking = results.compare(flags.by or SEARCH, flags.metric)
    print(f"{ranking}\n\n{to_markdown(ranking_table(ranking))}")
    if flags.output:
        from tune_hpc.report.report import write_report

        names = " and ".join(names_of(searches))
        title = f"{names} by {ranking.parameter}" if len(searches) == 1 else f"{names} compared"
        page = write_report(searches, flags.output, title, in_folders=False, importance=_importance, comparison=ranking)
        print(f"\nreport: {page}")
    return SUCCESS


def _report(flags: argparse.Namespace) -> int:
    from tune_hpc.analysis.results import load_all
    from tune_hpc.report.report import write_report
    from tune_hpc.storage.filesystem import here

    results = [one for folder in flags.folders for one in load_all(folder)]
    page = here(flags.output) if flags.output else here(flags.folders[0]) / "report.html"
    print(write_report(results, page, importance=_importance))
    return SUCCESS


def _importance(results: "Results") -> Any:
    """Say which parameters decide; Ray and Optuna, which take seconds to import, only where there are several."""
    if len([name for name in results.varying if name != "seed"]) < 2:
        raise UnknownNameError(f"nothing is to be told apart in {results.name}")
    from tune_hpc.search.importance import importance

    return importance(results)


def _export(flags: argparse.Namespace) -> int:
    from tune_hpc.export.export import export_search

    for one in export_search(flags.folders, flags.to, where=flags.where, follow=flags.follow):
        print(f"{one.experiment}: {one.num_trials} new trials in {one.tool}; {one.viewer}")
    return SUCCESS


def _spaces(flags: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from tune_hpc.search.experiment_registry import experiments_named, registered_experiments

    if flags.names:
        for experiment in [one for name in flags.names for one in experiments_named(name)]:
            print(f"{experiment.name}: {experiment.title} ({experiment.source}; {experiment.num_trials} trials)")
            for name in experiment.space:
                print(f"  {name} = {experiment.space.describe(name)}")
        return SUCCESS
    table = Table("experiment", "trials", "quick", "varies", "title", box=None)
    for experiment in registered_experiments():
        quick = experiment.quick_version()
        table.add_row(
            experiment.name, str(experiment.num_trials), str(quick.num_trials), _some(experiment.space.varying),
            experiment.title,
        )  # fmt: skip
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    return SUCCESS


def _some(names: Sequence[str]) -> str:
    """Return a list of names, of which only the first are told where there are many."""
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"


def _data(flags: argparse.Namespace) -> int:
    from tune_hpc.learning.download import check_name, find_or_fetch

    for name in flags.names:
        check_name(name)
    for name in flags.names:
        print(f"{name}: {find_or_fetch(name, Path(flags.data_dir) if flags.data_dir else None)}")
    return SUCCESS

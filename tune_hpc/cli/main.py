"""Commands on experiments: run, scale, resume, extend, export, list, data; those on results are in ``show.py``.

Each command imports the heavy modules that it needs, so that ``--help`` is fast and ``show`` imports neither torch nor
Ray.
"""

import argparse
import gc
import io
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tune_hpc import __version__
from tune_hpc.cli import jobs
from tune_hpc.cli.options import (
    add_local_flags,
    add_names,
    add_restart_flags,
    add_run_flags,
    add_scale_flags,
    run_options,
)
from tune_hpc.cli.selection import find_experiments, run_name
from tune_hpc.cli.serve import add_serve_command
from tune_hpc.cli.show import compare, importance, report, show, summary
from tune_hpc.errors import FolderError, InvalidExperimentError, TuneHpcError

if TYPE_CHECKING:
    from tune_hpc.analysis.results import Results
    from tune_hpc.search.experiment import Experiment

_EXAMPLES = """\
examples:
  tune-hpc list                                          experiments that can be run
  tune-hpc run exercise2.softmax                         one stage, at full size
  tune-hpc run exercise3 --quick                         all stages of an exercise, at small size
  tune-hpc run exercise3.winner --seeds 5 --set dropout=0.4,0.5
  tune-hpc run exercise2.softmax --set 'learning_rate=loguniform(1e-4, 1)' --searcher tpe --num-samples 100
  tune-hpc run my_search:experiment                      your own experiment, from my_search.py
  tune-hpc run my_search:train --set x=1,2,3 --metric loss --mode min
  tune-hpc run --command 'python train.py --lr {lr}' --set lr=0.1,0.01 --metric val_loss --mode min
  tune-hpc run search.yaml                               a search as data: docs/searching.md
  tune-hpc resume runs/exercise3                         continue after an interrupt
  tune-hpc extend runs/exercise2.softmax --num-samples 50
  tune-hpc show runs/exercise2.softmax                   the best trials
  tune-hpc compare runs/exercise2.softmax --by optimizer comparison with confidence intervals
  tune-hpc report runs/exercise2.softmax                 tables, figures and report.html
  tune-hpc export runs/exercise2.softmax --to tensorboard
  tune-hpc submit exercise2.softmax --address http://head:8265 --storage /nfs/jobs
  tune-hpc status ID; tune-hpc logs ID --follow; tune-hpc stop ID; tune-hpc resume ID; tune-hpc fetch ID
  tune-hpc delete ID
"""

#: Exit codes: success; no trial has a result; invalid input; requeue after the warning of a batch system (SIGUSR1);
#: interrupted; terminated.
SUCCESS, FAILURE, USAGE, REQUEUE, INTERRUPTED, TERMINATED = 0, 1, 2, 75, 130, 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code, one of the constants of this module.

    Args:
        arguments: Command and flags; by default those of this process.
    """
    parser, words = _parser(), sys.argv[1:] if arguments is None else arguments
    if empty := [word for word in words if re.fullmatch("-[^=]*=--", word)]:
        # argparse would replace the value by an empty list.
        parser.error(f"argument {empty[0].removesuffix('=--')}: -- is no value")
    flags = parser.parse_args(words)
    # Long steps, like a download, log a line. Ray's loggers are unchanged.
    log, to_terminal = logging.getLogger("tune_hpc"), _TerminalHandler()
    log.addHandler(to_terminal)
    log.setLevel(logging.INFO)
    try:
        return _run_command(flags)
    except TuneHpcError as error:
        print(f"tune-hpc: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("tune-hpc: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of the output has closed the pipe; Python would fail once more when it flushes at exit.
        sys.stdout = None
        return SUCCESS
    except OSError as error:
        if error.filename is None:
            # Standard output, on a full disk: Python would fail once more when it flushes at exit.
            sys.stdout = None
        print(f"tune-hpc: {error}", file=sys.stderr)
        return FAILURE
    finally:
        log.removeHandler(to_terminal)


def _run_command(flags: argparse.Namespace) -> int:
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise FolderError("the working directory has been deleted; change to another one") from error
    code = int(flags.run_command(flags))
    if sys.stdout is not None:
        sys.stdout.flush()
    return code


class _TerminalHandler(logging.StreamHandler):
    """Log handler that looks up standard error for each line, so that lines appear above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class _Parser(argparse.ArgumentParser):
    """Parser whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def run_and_exit(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its code."""
    # Imports allocate a million objects that stay; collections at the default threshold take 0.4 s of them.
    gc.set_threshold(5000)
    for stream in (sys.stdout, sys.stderr):
        # A terminal or a pipe may have an encoding without some characters: they appear as \\xd7 or \\u2013.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    code = main(arguments)
    if "triton" not in sys.modules:
        # The last garbage collection would traverse all modules of Ray and pandas for half a second. Triton, which
        # PyTorch's optimizers import, would print objects that it does not collect as leaks.
        gc.freeze()
    sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="tune-hpc", description="Hyperparameter search on Ray.", epilog=_EXAMPLES, formatter_class=raw,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"tune-hpc {__version__}")
    parser.set_defaults(run_command=lambda flags: print(parser.format_help(), end="") or USAGE)
    commands = parser.add_subparsers(metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, formatter_class=raw, allow_abbrev=False)
        sub.set_defaults(run_command=command)
        return sub

    run = add("run", _run, "run experiments and write their results")
    run.epilog = _EXAMPLES
    add_run_flags(run)
    add_local_flags(run)
    add_names(run)

    scale = add("scale", _scale, "measure training time on several workers, and where the time is spent")
    add_scale_flags(scale)

    for name, text in (
        ("resume", "resume searches that stopped early; trials that ended are not repeated"),
        ("extend", "add configurations to a search; its searcher knows all earlier trials"),
    ):
        restart = add(name, _restart, text)
        restart.add_argument("folder", metavar="FOLDER", help="an experiment folder, or the id of a job")
        jobs.add_storage_flags(restart, writes=True)
        restart.set_defaults(num_samples=None)
        if name == "extend":
            restart.add_argument(
                "--num-samples", type=int, metavar="N", required=True, help="number of additional configurations"
            )
        add_restart_flags(restart)
        add_local_flags(restart)

    sub = add("show", show, "show the number of trials by status, and the best configurations")
    sub.add_argument("folder", metavar="FOLDER")
    sub.add_argument("-n", type=int, default=10, help="number of configurations (default: 10)")
    sub.add_argument("--metric", help="column that ranks configurations (default: the metric of the experiment)")
    sub.add_argument("--mode", choices=("min", "max"), help="direction of --metric (default: as declared)")

    sub = add("compare", compare, "compare searches or parameter values, with confidence intervals")
    sub.add_argument("folders", nargs="+", metavar="FOLDER")
    sub.add_argument("--by", metavar="PARAMETER", help="compare the values of this parameter (default: searches)")
    sub.add_argument("--metric", help="column to compare (default: the metric of the experiment)")
    sub.add_argument("--mode", choices=("min", "max"), help="direction of --metric (default: as declared)")
    sub.add_argument("-o", "--output", metavar="FILE", help="also write a page with the sections of the searches")

    sub = add("report", report, "write tables, figures and report.html")
    sub.add_argument("folders", nargs="+", metavar="FOLDER")
    sub.add_argument("-o", "--output", metavar="FILE", help="the page (default: report.html in the first folder)")

    export = add("export", _export, "export searches to TensorBoard, Optuna or MLflow; they may still run")
    export.add_argument("folders", nargs="+", metavar="FOLDER")
    export.add_argument(
        "--to", action="append", required=True, metavar="TOOL",
        help="tensorboard, optuna or mlflow; repeatable, or a list (a,b)",
    )  # fmt: skip
    export.add_argument("--where", metavar="TARGET", help="folder, file, storage or server (default: in the folder)")
    export.add_argument("--follow", action="store_true", help="export new trials until the searches end")

    jobs.add_job_commands(add)
    add_serve_command(add)
    jobs.add_slurm_command(add)

    listing = add("list", _list, "list the registered experiments with their sizes and parameters")
    listing.add_argument("names", nargs="*", metavar="NAME", help="only these, with all parameters")

    data = add("data", _data, "find or download image data, and print its folder")
    data.add_argument("names", nargs="*", default=["mnist"], metavar="NAME", help="mnist (default), fashion_mnist")
    data.add_argument("--data-dir", metavar="DIR", help="folder of the data; missing files are downloaded")
    return parser


def _run(flags: argparse.Namespace) -> int:
    experiments = find_experiments(flags)
    is_reference = len(experiments) == 1 and ":" in "".join(flags.names)
    name = "" if is_reference else run_name(flags)
    return run_experiments(experiments, name or experiments[0].name, flags)


def _scale(flags: argparse.Namespace) -> int:
    from tune_hpc.scaling.plan import OPTIONS
    from tune_hpc.search.experiment_registry import experiments_named
    from tune_hpc.search.space.parsing import parse_settings

    if flags.option == "all":
        flags.option = ",".join(OPTIONS)
    keys = ("workers", "option", "mode", "repeats", "num_timed_steps")
    settings = [f"{key}={value}" for key in keys if (value := getattr(flags, key)) is not None]
    (experiment,) = experiments_named("exercise4")
    experiment = experiment.quick_version() if flags.quick else experiment
    experiment = experiment.with_values(parse_settings([*flags.settings, *settings]))
    if set(experiment.space.varying) - {"workers"}:
        # Figures of the experiment show one configuration; the default figures show several.
        experiment = experiment.replace(figures=())
    return run_experiments([experiment], "scaling", flags, spread=flags.spread, max_restarts=flags.max_restarts)


def run_experiments(experiments: list["Experiment"], name: str, flags: argparse.Namespace, **options: Any) -> int:
    """Run experiments, write their results, and print a summary.

    Raises:
        InvalidExperimentError: Flags contradict each other.
    """
    from tune_hpc.jobs.launch import folders_in, launch
    from tune_hpc.storage.experiment_folder import new_folder
    from tune_hpc.storage.filesystem import Storage

    if flags.resume and not flags.output_dir:
        raise InvalidExperimentError("--resume needs --output-dir, the folder of the searches to resume")
    if flags.resume and flags.overwrite:
        raise InvalidExperimentError("--resume keeps earlier results and --overwrite removes them; use one of them")
    parent = Storage(flags.output_dir).root if flags.output_dir else new_folder(name)
    options |= run_options(flags) | _runner_options(flags)
    options |= {"overwrite": flags.overwrite, "resume_started": flags.resume}
    if flags.warm_start:
        options["warm_start"] = flags.warm_start
    results = launch(experiments, folders_in(parent, experiments), **options)
    return _print_summary(results, None if flags.no_report else parent / "report.html")


def _restart(flags: argparse.Namespace) -> int:
    """Resume the searches of a folder, or extend its only search; or do so with a job."""
    if jobs.is_job(flags.folder):
        return jobs.restart(flags)
    from tune_hpc.analysis.loading import load_all
    from tune_hpc.search.runner import extend, resume
    from tune_hpc.storage.filesystem import Storage

    options = run_options(flags) | _runner_options(flags) | {"retry_failed": flags.retry_failed}
    if flags.num_samples is not None:
        extend(flags.folder, num_samples=flags.num_samples, **options)
    else:
        resume(flags.folder, **options)
    return _print_summary(
        load_all(flags.folder), None if flags.no_report else Storage(flags.folder).root / "report.html"
    )


def _runner_options(flags: argparse.Namespace) -> dict[str, Any]:
    return {"runner": flags.runner, "fail_fast": flags.fail_fast, "force": flags.force}


def _print_summary(results: Sequence["Results"], page: Path | None) -> int:
    """Print a line for each experiment, write the report, and return the exit code."""
    for result in results:
        print(summary(result))
        if result.failures:
            print(f"{result.name}: {result.failures}")
    if page is not None:
        from tune_hpc.report.report import write_report
        from tune_hpc.search.stopping import ignored_warning_signal

        # A batch system decides by the exit code whether to requeue the job.
        with ignored_warning_signal():
            print(f"report: {write_report(results, page, importance=importance)}")
    _print_resume_commands(results)
    if any(one.experiment.get("is_to_be_requeued") for one in results):
        return REQUEUE
    if any(one.experiment.get("is_terminated") for one in results):
        return TERMINATED
    if any(one.experiment["state"] == "interrupted" for one in results):
        return INTERRUPTED
    return FAILURE if any(map(_has_failed, results)) else SUCCESS


def _has_failed(results: "Results") -> bool:
    """Return whether too many trials failed, or trials ended without any result; a stop before their end is none."""
    if results.experiment.get("has_failed"):
        return True
    counts = set(results.counts())
    is_early_stop = results.experiment["state"] == "stopped" and counts <= {"running"}
    return not is_early_stop and not {"finished", "stopped"} & counts


def _print_resume_commands(results: Sequence["Results"]) -> None:
    """Print one command for each search that stopped early, or one for all if their parent has no other search."""
    from tune_hpc.storage.experiment_folder import find_experiments as folders_below

    stopped = [result for result in results if result.experiment.get("ended_by")]
    folders = {result.folder for result in results if result.folder}
    parents = {folder.parent for folder in folders}
    if len(stopped) > 1 and len(parents) == 1 and {one.path for one in folders_below(*parents)} <= folders:
        quoted = shlex.quote(str(parents.pop()))
        print(f"{len(stopped)} searches: {stopped[0].experiment['ended_by']}; to resume: tune-hpc resume {quoted}")
        return
    for result in stopped:
        quoted = shlex.quote(str(result.folder))
        print(f"{result.name}: {result.experiment['ended_by']}; to resume: tune-hpc resume {quoted}")


def _export(flags: argparse.Namespace) -> int:
    from tune_hpc.export.exporter import export_search

    for export in export_search(flags.folders, flags.to, where=flags.where, follow=flags.follow):
        print(f"{export.experiment}: {export.num_trials} new trials exported to {export.tool}; {export.viewer}")
    return SUCCESS


def _list(flags: argparse.Namespace) -> int:
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
            experiment.name, str(experiment.num_trials), str(quick.num_trials), _list_some(experiment.space.varying),
            experiment.title,
        )  # fmt: skip
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    return SUCCESS


def _list_some(names: Sequence[str]) -> str:
    """Return the first names of a long list, and the number of the others."""
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"


def _data(flags: argparse.Namespace) -> int:
    from tune_hpc.learning.download import check_name, find_or_download

    for name in flags.names:
        check_name(name)
    for name in flags.names:
        print(f"{name}: {find_or_download(name, Path(flags.data_dir) if flags.data_dir else None)}")
    return SUCCESS

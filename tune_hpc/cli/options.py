"""The flags of a run, and the experiments that they name.

Nothing heavy is imported before it is needed, as in cli.py.
"""

import argparse
from typing import TYPE_CHECKING, Any

from tune_hpc.errors import InvalidExperimentError, UnknownNameError

if TYPE_CHECKING:
    from tune_hpc.search.experiment import Experiment

#: The options of a run that flags of the same names give.
PLACE_FLAGS = (
    "address", "cpus_per_trial", "gpus_per_trial", "max_concurrent", "fuse", "data_dir", "time_budget_s", "target",
    "export",
)  # fmt: skip


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how experiments run; the scripts share them."""
    add_what_flags(parser)
    add_place_flags(parser)
    _add_results_flags(parser)


def add_what_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what is run."""
    space = parser.add_argument_group("what is run")
    space.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="a value, a list (a,b,c) or a range (uniform(0, 0.5), loguniform(1e-4, 1)), for KEY[OTHER=a,b] only where "
        "the parameter OTHER is a or b; repeatable",
    )
    space.add_argument("--quick", action="store_true", help="fewer steps and values, for a first look")
    space.add_argument("--seeds", type=int, metavar="N", help="run every configuration with seeds 0 to N-1")
    space.add_argument(
        "--searcher",
        metavar="NAME",
        help="grid (every configuration), random, quasi_random, or one that learns: tpe, gp",
    )
    space.add_argument(
        "--num-samples", type=int, metavar="N", help="try N configurations (default searcher for this: random)"
    )
    space.add_argument(
        "--scheduler",
        metavar="NAME",
        help="what spends steps where they pay: asha, asha_stopping, hyperband, median, or pbt (default: the "
        "experiment's)",
    )
    space.add_argument("--search-seed", type=int, default=0, metavar="N", help="fixes what is drawn (default: 0)")
    space.add_argument("--metric", help="what ranks trials (default: the experiment's; loss for a function)")
    space.add_argument("--mode", choices=["min", "max"], help="whether less or more of it is better (function: min)")
    space.add_argument(
        "--from",
        action="append",
        default=[],
        metavar="FOLDER",
        dest="warm_start",
        help="tell a searcher that learns (tpe, gp) of another search's trials first; repeatable",
    )


#: What --address means where trials run from this very process.
HERE = "a Ray cluster, HOST:PORT (default: Ray is started on this machine)"


def _add_address_flags(where: argparse._ArgumentGroup, address: str = HERE) -> None:
    where.add_argument("--address", metavar="ADDRESS", help=address)
    where.add_argument("--data-dir", metavar="DIR", help="where the image data are, or are to be put")


def _add_results_flags(parser: argparse.ArgumentParser) -> None:
    results = parser.add_argument_group("where results go")
    results.add_argument("--output-dir", metavar="DIR", help="default: runs/NAME, or runs/NAME-2 where that is taken")
    results.add_argument(
        "--overwrite", action="store_true", help="replace an earlier run of the same experiments there"
    )
    results.add_argument(
        "--resume",
        action="store_true",
        dest="go_on",
        help="go on with what --output-dir holds and begin the rest: the same command again after each interrupt",
    )
    results.add_argument(
        "--force", action="store_true",
        help="with --resume: although nothing is known of the driver that ran it; that one stops if it still runs",
    )  # fmt: skip
    results.add_argument("--no-report", action="store_true", help="write the data frames only")


def add_scale_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a scaling measurement."""
    what = parser.add_argument_group("what is timed")
    what.add_argument("--workers", default="1,2,4", metavar="N,...", help="numbers of workers (default: 1,2,4)")
    what.add_argument(
        "--mode", metavar="MODE", help="strong: they share each batch (default); weak: each has a batch of its own"
    )
    what.add_argument("--repeats", metavar="N", help="how often, each time with another seed (default: 3)")
    what.add_argument(
        "--timed-steps",
        metavar="N",
        dest="num_timed_steps",
        help="steps under the clock (default: all on GPUs, at most 100 on CPUs)",
    )
    what.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
        help="change the configuration of Exercise 4; a list (width=0.25,1,4) is timed side by side; repeatable",
    )  # fmt: skip
    what.add_argument(
        "--options", metavar="NAME,...", dest="option",
        help="what could make it scale, each measured by itself: all, or some of none, small_buckets, bucket_view, "
        "bf16, larger_steps, local_steps",
    )  # fmt: skip
    what.add_argument("--quick", action="store_true", help="ten steps, once, for a first look")
    where = parser.add_argument_group("where it is run")
    _add_address_flags(where)
    where.add_argument("--spread", action="store_true", help="each worker on a node of its own")
    where.add_argument(
        "--max-restarts", type=int, default=0, metavar="N", help="begin anew where a worker is lost (default: 0)"
    )
    _add_results_flags(parser)
    parser.set_defaults(warm_start=[], **{name: None for name in PLACE_FLAGS if name not in ("address", "data_dir")})


def add_place_flags(parser: argparse.ArgumentParser, address: str = HERE) -> None:
    """Add the flags that say where trials run and how many at once; ``address`` is what --address means."""
    where = parser.add_argument_group("where it is run")
    _add_address_flags(where, address)
    where.add_argument(
        "--cpus-per-trial", type=float, metavar="N", help="CPU cores a trial, or each of its workers (default: 1)"
    )
    where.add_argument("--gpus-per-trial", type=float, metavar="N", help="GPUs a trial, or each of its workers")
    where.add_argument("--max-concurrent", type=int, metavar="N", help="trials that run at once, at most")
    where.add_argument(
        "--fuse", metavar="N", help="trials that train as one program: auto (default), off, or at most N"
    )
    where.add_argument(
        "--export",
        action="append",
        metavar="TOOL",
        help="show it to tensorboard, optuna, mlflow while it runs; repeatable, or a list (a,b)",
    )
    limits = parser.add_argument_group("when it ends before its time, to be resumed or not")
    limits.add_argument(
        "--time-budget", type=_seconds, metavar="TIME", dest="time_budget_s", help="seconds, or 90s, 30m, 12h"
    )
    limits.add_argument("--target", type=float, metavar="VALUE", help="when a trial ends with such a metric, or better")


def _seconds(text: str) -> float:
    """Return a time in seconds: 90, 90s, 30m or 12h."""
    units = {"s": 1, "m": 60, "h": 3600}
    return float(text[:-1]) * units[text[-1]] if text[-1:] in units else float(text)


def find_experiments(name: str, flags: argparse.Namespace) -> list["Experiment"]:
    """Return the experiments of a name, changed as the flags say.

    Raises:
        UnknownNameError: nothing is called so.
        InvalidSpaceError: a setting that its parameter does not allow.
        InvalidExperimentError: flags that contradict one another.
    """
    from tune_hpc.search.overrides import apply_overrides
    from tune_hpc.search.space.parsing import parse_settings

    values = parse_settings(flags.settings)
    if flags.seeds is not None and flags.seeds < 1:
        raise InvalidExperimentError(f"--seeds must be at least 1; got {flags.seeds}")
    return [
        apply_overrides(
            experiment,
            values,
            quick=flags.quick,
            searcher=flags.searcher,
            num_samples=flags.num_samples,
            scheduler=flags.scheduler,
            seeds=flags.seeds,
            search_seed=flags.search_seed,
            metric=flags.metric,
            mode=flags.mode,
            # A function of one's own has no metric yet of which one could say which way it goes.
            is_ranked=experiment.trainable != name,
        )
        for experiment in _named(name, values)
    ]


def _named(name: str, values: dict[str, Any]) -> list["Experiment"]:
    from tune_hpc.search.experiment import Experiment
    from tune_hpc.search.experiment_registry import experiments_named, registered_experiments
    from tune_hpc.search.object_reference import load_reference
    from tune_hpc.search.space.space import Space

    if ":" not in name:
        return registered_experiments() if name == "all" else experiments_named(name)
    target = load_reference(name)
    if isinstance(target, Experiment):
        return [target]
    if isinstance(target, list | tuple) and target and all(isinstance(one, Experiment) for one in target):
        return list(target)
    if not callable(target):
        raise UnknownNameError(
            f"{name} is of type {type(target).__name__}; an Experiment or a function (config, report) is wanted"
        )
    if not values:
        raise InvalidExperimentError(
            f"{name} is a function: give its parameters with --set KEY=VALUE, or name an Experiment"
        )
    # A function gives its own meaning to every key, so none is held against ours.
    return [Experiment(name.replace(":", "."), Space(values, keys={}), name, metric="loss", mode="min", seeds=())]

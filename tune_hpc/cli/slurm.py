"""``tune-hpc slurm NAME ...``: a batch script for a run, refused now if the run would be refused in the allocation."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune_hpc.cli.options import PLACE_FLAGS, add_run_flags, find_experiments
from tune_hpc.errors import InvalidExperimentError

if TYPE_CHECKING:
    from tune_hpc.search.experiment import Experiment

_EXAMPLES = """\
examples:
  tune-hpc slurm exercise3.open --time 12:00:00 --gpus-per-node 1 --cpus-per-node 8 -o search.sbatch
  tune-hpc slurm exercise2 --seeds 5 --nodes 2 --gpus-per-node 4 --time 02:00:00 --partition gpu > search.sbatch
  sbatch search.sbatch
"""

#: Of the flags of a run, those that a script sets by itself.
_OWN = ("output_dir", "go_on")


def add_slurm_verb(add: Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]) -> None:
    """Add the verb to a command line.

    Args:
        add: Makes a verb's parser from its name, its function and its one line of help.
    """
    parser = add("slurm", _slurm, "write a batch script for Slurm that runs experiments and goes on by itself")
    parser.epilog = _EXAMPLES
    parser.add_argument("names", nargs="+", metavar="NAME", help="as for run, whose flags this takes, too")
    asked = parser.add_argument_group("what is asked of Slurm")
    asked.add_argument("--time", required=True, metavar="TIME", help="minutes, HH:MM:SS or D-HH:MM:SS for each start")
    asked.add_argument("--nodes", type=int, default=1, metavar="N", help="nodes (default: 1)")
    asked.add_argument("--gpus-per-node", type=int, default=0, metavar="N", help="GPUs of each (default: none)")
    asked.add_argument("--cpus-per-node", type=int, metavar="N", help="cores of each (default: whole nodes)")
    asked.add_argument("--memory", metavar="SIZE", help="of each node: 16G (default: the site's; of whole nodes all)")
    asked.add_argument("--partition", metavar="NAME", help="where it is queued (default: the site's)")
    asked.add_argument("--account", metavar="NAME", help="whom it is charged to")
    asked.add_argument(
        "--warning", type=int, default=120, metavar="SECONDS", dest="warning_s",
        help="before the end, to save all states and to be queued again (default: 120, at least 60)",
    )  # fmt: skip
    asked.add_argument(
        "--max-requeues", type=int, default=100, metavar="N", help="times it is queued again, at most (default: 100)"
    )
    asked.add_argument("--job-name", metavar="NAME", help="default: the experiment's")
    asked.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION", dest="options",
        help="one more option of sbatch's, written --sbatch=--constraint=a100; repeatable",
    )  # fmt: skip
    asked.add_argument(
        "--setup", action="append", default=[], metavar="LINE", help="a line of shell first: 'module load cuda'"
    )
    asked.add_argument(
        "--environment", metavar="DIR", help="the Python environment in the job (default: the one that runs this)"
    )
    asked.add_argument(
        "--symmetric-run", action="store_true", default=None,
        help="ray symmetric-run on one node, too (it needs the whole node; default: from two nodes on)",
    )  # fmt: skip
    asked.add_argument("-o", "--output", metavar="FILE", help="where the script goes (default: standard output)")
    add_run_flags(parser)


def _slurm(flags: argparse.Namespace) -> int:
    from tune_hpc.jobs.launch import folders_in
    from tune_hpc.jobs.sbatch import Allocation, batch_script
    from tune_hpc.storage.experiment_folder import new_folder, write_atomic
    from tune_hpc.storage.filesystem import here

    for given, why in (
        (flags.address, "--address names a cluster; in an allocation Ray is started there"),
        (flags.overwrite, "--overwrite would remove at every start what the last one did; name a new --output-dir"),
    ):
        if given:
            raise InvalidExperimentError(f"{why}; leave it out")
    name = "-".join(flags.names).replace(":", ".")
    allocation = Allocation(
        time=flags.time,
        nodes=flags.nodes,
        gpus_per_node=flags.gpus_per_node,
        cpus_per_node=flags.cpus_per_node,
        memory=flags.memory,
        partition=flags.partition,
        account=flags.account,
        warning_s=flags.warning_s,
        max_requeues=flags.max_requeues,
        job_name=flags.job_name or name[:64],
        options=tuple(flags.options),
        setup=tuple(flags.setup),
        environment=flags.environment or sys.prefix,
        symmetric_run=flags.symmetric_run,
    )
    experiments = [experiment for one in flags.names for experiment in find_experiments(one, flags)]
    place = flags.output_dir or str(new_folder(name[:100]))
    options = {key: getattr(flags, key) for key in PLACE_FLAGS if key != "address"}
    if flags.warm_start:
        options["warm_start"] = flags.warm_start
    _check(experiments, folders_in(here(place), experiments), options)
    command = ["tune-hpc", "run", *flags.names, *_run_flags(flags), f"--output-dir={place}", "--resume"]
    text = batch_script(allocation, command)
    if not flags.output:
        print(text, end="")
        return 0
    write_atomic(Path(flags.output), lambda path: path.write_text(text, encoding="utf-8"))
    print(f"{flags.output}: results go to {place}; submit with: sbatch {flags.output}")
    return 0


def _check(experiments: Sequence["Experiment"], folders: Sequence[Path], options: Mapping[str, Any]) -> None:
    """Refuse now what a run would refuse after the job has waited in a queue."""
    from tune_hpc.search.object_reference import load_reference

    for runner in dict.fromkeys(experiment.runner for experiment in experiments):
        chosen = [(one, folder) for one, folder in zip(experiments, folders, strict=True) if one.runner == runner]
        those, homes = [one for one, _ in chosen], [folder for _, folder in chosen]
        load_reference(runner)(those, folders=homes, go_on=True, check_only=True, **options)


def _run_flags(flags: argparse.Namespace) -> list[str]:
    """Return those flags of a run that were given, as they would be written."""
    parser = argparse.ArgumentParser(add_help=False)
    add_run_flags(parser)
    words = []
    for action in parser._actions:  # argparse has no public list of them.
        value = getattr(flags, action.dest)
        if action.dest in _OWN or value == action.default:
            continue
        flag = action.option_strings[-1]
        if action.nargs == 0:
            words.append(flag)
        else:
            words += [f"{flag}={one}" for one in (value if isinstance(value, list) else [value])]
    return words

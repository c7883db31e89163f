"""Command ``tune-hpc slurm NAME ...``: a batch script of a run; invalid input is rejected before the job waits."""

import argparse
import sys
from dataclasses import fields

from tune_hpc.cli.options import AddCommand, add_run_flags, find_experiments, run_options
from tune_hpc.errors import InvalidExperimentError

_EXAMPLES = """\
examples:
  tune-hpc slurm exercise3.open --time 12:00:00 --gpus-per-node 1 --cpus-per-node 8 -o search.sbatch
  tune-hpc slurm exercise2 --seeds 5 --nodes 2 --gpus-per-node 4 --time 02:00:00 --partition gpu > search.sbatch
  sbatch search.sbatch
"""

#: Flags of a run that the script sets.
_SCRIPT_FLAGS = ("output_dir", "resume")


def add_slurm_command(add: AddCommand) -> None:
    """Add the command."""
    parser = add("slurm", _slurm, "write a Slurm batch script that runs experiments and requeues itself")
    parser.epilog = _EXAMPLES
    parser.add_argument("names", nargs="+", metavar="NAME", help="as for run; the flags of run are valid, too")
    slurm = parser.add_argument_group("Slurm")
    slurm.add_argument("--time", required=True, metavar="TIME", help="time limit: minutes, HH:MM:SS or D-HH:MM:SS")
    slurm.add_argument("--nodes", type=int, default=1, metavar="N", help="nodes (default: 1)")
    slurm.add_argument("--gpus-per-node", type=int, default=0, metavar="N", help="GPUs per node (default: 0)")
    slurm.add_argument("--cpus-per-node", type=int, metavar="N", help="cores per node (default: whole nodes)")
    slurm.add_argument(
        "--memory", metavar="SIZE", help="per node: 16G (default: that of the site; all memory of whole nodes)"
    )
    slurm.add_argument("--partition", metavar="NAME", help="partition (default: that of the site)")
    slurm.add_argument("--account", metavar="NAME", help="Slurm account")
    slurm.add_argument(
        "--warning", type=int, default=120, metavar="SECONDS", dest="warning_s",
        help="time before the limit to save checkpoints and requeue (default: 120, at least 60)",
    )  # fmt: skip
    slurm.add_argument(
        "--max-requeues", type=int, default=100, metavar="N", help="maximum number of requeues (default: 100)"
    )
    slurm.add_argument("--job-name", metavar="NAME", help="default: the name of the experiment")
    slurm.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION", dest="options",
        help="another option of sbatch, as --sbatch=--constraint=a100; repeatable",
    )  # fmt: skip
    slurm.add_argument(
        "--setup", action="append", default=[], metavar="LINE",
        help="a line of shell before the run: 'module load cuda'; repeatable",
    )  # fmt: skip
    slurm.add_argument(
        "--environment", default=sys.prefix, metavar="DIR", help="Python environment of the job (default: this one)"
    )
    slurm.add_argument(
        "--symmetric-run", action="store_true", default=None,
        help="use ray symmetric-run on one node, which must be whole (default: from two nodes)",
    )  # fmt: skip
    slurm.add_argument("-o", "--output", metavar="FILE", help="the script (default: standard output)")
    add_run_flags(parser)


def _slurm(flags: argparse.Namespace) -> int:
    from tune_hpc.jobs.launch import folders_in, launch
    from tune_hpc.jobs.sbatch import Allocation, batch_script
    from tune_hpc.storage.experiment_folder import new_folder
    from tune_hpc.storage.filesystem import Storage

    if flags.address:
        raise InvalidExperimentError("--address names a cluster, but the job starts its own Ray; leave it out")
    if flags.overwrite:
        raise InvalidExperimentError(
            "--overwrite would remove the results at each requeue; leave it out, or name a new --output-dir"
        )
    name = "-".join(flags.names).replace(":", ".")
    values = {one.name: getattr(flags, one.name) for one in fields(Allocation)}
    values |= {key: tuple(values[key]) for key in ("options", "setup")}
    allocation = Allocation(**values | {"job_name": flags.job_name or name[:64]})
    experiments, output_dir = find_experiments(flags.names, flags), flags.output_dir or str(new_folder(name[:100]))
    warm_start = {"warm_start": flags.warm_start} if flags.warm_start else {}
    folders = folders_in(Storage(output_dir).root, experiments)
    launch(experiments, folders, check_only=True, resume_started=True, **run_options(flags), **warm_start)
    command = ["tune-hpc", "run", *flags.names, *_run_flags(flags), f"--output-dir={output_dir}", "--resume"]
    text = batch_script(allocation, command)
    if not flags.output:
        print(text, end="")
        return 0
    Storage(".").write_atomic(flags.output, text)
    print(f"{flags.output}: results go to {output_dir}; submit with: sbatch {flags.output}")
    return 0


def _run_flags(flags: argparse.Namespace) -> list[str]:
    """Return the flags of a run that the user gave, as words of a command line."""
    parser = argparse.ArgumentParser(add_help=False)
    add_run_flags(parser)
    words = []
    for action in parser._actions:  # argparse has no public list of its flags.
        value = getattr(flags, action.dest)
        if action.dest in _SCRIPT_FLAGS or value == action.default:
            continue
        flag = action.option_strings[-1]
        if action.nargs == 0:
            words.append(flag)
        else:
            words += [f"{flag}={one}" for one in (value if isinstance(value, list) else [value])]
    return words

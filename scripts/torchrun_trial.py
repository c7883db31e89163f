"""One trial without Ray: the training loop of a search on one process, or on several under torchrun.

    python scripts/torchrun_trial.py --set model=cnn --set steps=1000 --output trial.json
    torchrun --nproc-per-node 4 scripts/torchrun_trial.py --set model=cnn --set batch_size=100 --output trial.json

For machines without packages of Ray, such as Power9: the script imports only torch and numpy. Several processes share
each batch and learn the same as one. ``tune_hpc/learning/config.py`` lists the keys of a configuration. The output file
contains ``config``, ``row`` (columns of the trials frame) and ``history``: a list of values for ``step`` and each
metric, null for steps without a value. There are no checkpoints: an interrupted trial restarts.
"""

import argparse
import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from torch import distributed

from tune_hpc.errors import InvalidConfigError, TuneHpcError
from tune_hpc.learning.config import check_key, complete
from tune_hpc.learning.training import train
from tune_hpc.scaling.communication import DistributedCommunicator
from tune_hpc.scaling.plan import GradientSync


def main(arguments: Sequence[str] | None = None) -> int:
    """Train one model and write its trial.

    Returns:
        0; 2 on wrong input.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings", help="repeatable")
    parser.add_argument("--output", type=Path, default=Path("trial.json"), metavar="FILE", help="default: trial.json")
    flags = parser.parse_args(arguments)
    try:
        config = complete(read_config(flags.settings))
        with TorchrunCommunicator(config) as communicator:
            trial = run(config, communicator)
            if communicator.rank == 0:
                write(trial, flags.output)
    except TuneHpcError as error:
        print(f"torchrun_trial: {error}", file=sys.stderr)
        return 2
    return 0


def read_config(settings: Sequence[str]) -> dict[str, Any]:
    """Return the configuration of ``KEY=VALUE`` settings.

    Raises:
        InvalidConfigError: a malformed setting, an unknown key, or a value that its key does not allow.
    """
    config: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or name in config:
            raise InvalidConfigError(f"each key is set once, as --set KEY=VALUE; got {setting!r}")
        kind = check_key(name).kind
        try:
            config[name] = text if kind is str else json.loads(text)
        except json.JSONDecodeError:
            config[name] = check_key(name).check(text)
    return config


class TorchrunCommunicator:
    """Context manager of the process group of torchrun; without torchrun, of a single process.

    Args:
        config: Configuration with the options of the gradient synchronization.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._gradient_sync = GradientSync.from_config(config)

    def __enter__(self) -> DistributedCommunicator:
        size = int(os.environ.get("WORLD_SIZE", "1"))
        has_gpu = torch.cuda.is_available()
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if has_gpu else torch.device("cpu")
        if has_gpu:
            torch.cuda.set_device(device)
        if size == 1:
            return DistributedCommunicator(device=device, allow_cuda_graphs=True)
        distributed.init_process_group("nccl" if has_gpu else "gloo")
        return DistributedCommunicator(
            distributed.get_rank(),
            size,
            group=distributed.group.WORLD,
            device=device,
            gradient_sync=self._gradient_sync,
        )

    def __exit__(self, *_: object) -> None:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def run(config: Mapping[str, Any], communicator: DistributedCommunicator) -> dict[str, Any]:
    """Return the trained trial: ``config``, ``row`` and ``history``."""
    reported: dict[int, dict[str, float]] = {}

    def report(step: Any, metrics: Mapping[str, Any]) -> None:
        steps = np.atleast_1d(step)
        for name, values in metrics.items():
            for number, value in zip(steps, np.broadcast_to(values, len(steps)), strict=True):
                reported.setdefault(int(number), {})[name] = float(value)

    row = train(config, report, device=communicator.device, communicator=communicator)
    names = dict.fromkeys(name for metrics in reported.values() for name in metrics)
    steps = sorted(reported)
    history = {name: [reported[step].get(name) for step in steps] for name in names}
    last = {name: next(value for value in reversed(values) if value is not None) for name, values in history.items()}
    row |= {"workers": communicator.size, "host": socket.gethostname(), **last}
    return {"config": dict(config), "row": row, "history": {"step": steps, **history}}


def write(trial: Mapping[str, Any], path: Path) -> None:
    """Write a trial atomically, by a rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(trial, allow_nan=True), encoding="utf-8")
    temporary.replace(path)
    row = trial["row"]
    print(f"{row['status']} after {row['steps_run']} steps on {row['workers']} workers: {path}")


if __name__ == "__main__":
    sys.exit(main())

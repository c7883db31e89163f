"""Training time on several workers: one configuration, its batch shared, its gradients averaged at every step.

A TorchTrainer costs many seconds before its function is entered: four process starts one after the other (of 16 s on
two cores 5 for Ray Train's controller, 2 for the cleaner of its placement group, 5 for the workers with their import of
torch, 5 for what they share), each of them imports. So the largest number of workers is started once, and each
measurement runs on exactly its number of them, in a process group of their own, while the others wait. What is timed is
the loop after its first steps, with the workers in step; what came before is ``startup_s`` and ``warmup_s``.

Columns of the trials frame beside the configuration: ``train_s`` (seconds for ``steps`` steps), ``extrapolated``
(whether ``train_s`` was computed from fewer steps), ``num_timed_steps``, ``step_s``, ``warmup_s``, ``startup_s``,
``samples_per_s``, ``speedup`` and ``efficiency`` (against one worker), ``backend``, ``cores_per_worker`` and
``oversubscribed`` (more workers than cores, or than GPUs).
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import ray

from tune_hpc.analysis.folder import FORMAT, ExperimentFolder
from tune_hpc.analysis.results import Results, load, trials_frame, write_frames
from tune_hpc.errors import InvalidConfigError, TrialError
from tune_hpc.learning.config import complete
from tune_hpc.learning.image_files import read_arrays
from tune_hpc.scaling.workers import time_workers
from tune_hpc.search.experiment import Experiment
from tune_hpc.search.provenance import now, provenance
from tune_hpc.search.session import ray_session

#: Steps that are timed on CPUs unless told otherwise; 5000 would take hours.
NUM_TIMED_STEPS_ON_CPU = 100


@dataclass(frozen=True)
class Plan:
    """What is measured, and on what.

    Attributes:
        config: A completed configuration.
        workers: The numbers of workers, each measured once.
        num_timed_steps: Steps under the clock.
        use_gpu: Whether each worker gets a GPU (or a share of one).
        backend: ``nccl`` or ``gloo``.
        cpus: CPU cores of the cluster.
        gpus: GPUs of the cluster.
    """

    config: Mapping[str, Any]
    workers: tuple[int, ...]
    num_timed_steps: int
    use_gpu: bool
    backend: str
    cpus: float
    gpus: float

    @property
    def resources_per_worker(self) -> dict[str, float]:
        """What Ray reserves for each worker: a core, or its part where there are fewer cores than workers."""
        largest = max(self.workers)
        resources = {"CPU": min(1.0, self.cpus / largest)}
        if self.use_gpu:
            resources["GPU"] = min(1.0, self.gpus / largest)
        return resources

    def oversubscribed(self, num_workers: int) -> bool:
        """Whether so many workers share cores or GPUs."""
        return num_workers > (self.gpus if self.use_gpu else self.cpus)


def make_plan(configs: Sequence[Mapping[str, Any]], cluster: Mapping[str, float]) -> Plan:
    """Return how to measure configurations that differ in ``workers`` only.

    Args:
        configs: Keys of a trial, ``workers`` and, optionally, ``num_timed_steps``.
        cluster: Resources of the cluster, ``CPU`` and ``GPU``.

    Raises:
        InvalidConfigError: a rule of the configuration is broken, or something else than ``workers`` differs.
    """
    rest = [{name: value for name, value in config.items() if name != "workers"} for config in configs]
    if any(one != rest[0] for one in rest):
        raise InvalidConfigError("a scaling measurement varies workers alone; set every other parameter to one value")
    workers = tuple(config.get("workers", 1) for config in configs)
    config = complete({name: value for name, value in rest[0].items() if name != "num_timed_steps"})
    for number in workers:
        if not isinstance(number, int) or not 1 <= number <= config["batch_size"]:
            raise InvalidConfigError(
                f"workers must be a whole number from 1 to the batch size {config['batch_size']}; got {number!r}"
            )
    if config["model"] == "line":
        raise InvalidConfigError("the line's four points are not worth sharing; use model=softmax or model=cnn")
    gpus = cluster.get("GPU", 0)
    use_gpu = gpus > 0
    default = config["steps"] if use_gpu else min(config["steps"], NUM_TIMED_STEPS_ON_CPU)
    num_timed_steps = rest[0].get("num_timed_steps", default)
    if not isinstance(num_timed_steps, int) or not 1 <= num_timed_steps <= config["steps"]:
        raise InvalidConfigError(
            f"num_timed_steps must be a whole number from 1 to the {config['steps']} steps; got {num_timed_steps!r}"
        )
    # NCCL refuses two workers on one GPU; gloo carries their gradients through the host.
    backend = "nccl" if use_gpu and max(workers) <= gpus else "gloo"
    return Plan(config, workers, num_timed_steps, use_gpu, backend, cluster.get("CPU", 1), gpus)


def run_all(
    experiments: Sequence[Experiment],
    *,
    folders: Sequence[str | Path],
    overwrite: bool = False,
    address: str | None = None,
    data_dir: str | Path | None = None,
    show_progress: bool = True,
    check_only: bool = False,
    **search_options: Any,
) -> list[Results]:
    """Measure each experiment's configuration on each of its numbers of workers.

    Args:
        experiments: Experiments whose spaces vary ``workers`` alone.
        folders: One experiment folder each.
        overwrite: Replace what earlier runs of the same experiments left there.
        address: A Ray cluster; by default the one already connected to, else Ray is started on this machine.
        data_dir: Where the image data are, or are to be put.
        show_progress: Whether to say in a line what is being measured.
        check_only: Refuse what can be refused without a cluster, and start nothing.
        **search_options: Options of a search, which have no meaning here.

    Raises:
        InvalidConfigError: a rule of the configuration is broken.
        FolderError: a folder that cannot be written, or holds something else.
        DataUnavailableError: image data that are not here and cannot be fetched.
        ClusterError: no such cluster.
        TrialError: a worker ended before the measurement did.
    """
    planned = [
        (one, list(one.configs()), ExperimentFolder(Path(path).absolute()))
        for one, path in zip(experiments, folders, strict=True)
    ]
    for experiment, configs, home in planned:
        make_plan(configs, {})
        home.check_free(experiment.name, overwrite=overwrite)
    if check_only:
        return []
    ignored = [name for name, value in search_options.items() if value is not None]
    if ignored:
        print(f"a scaling measurement takes no notice of {', '.join(ignored)}", file=sys.stderr)
    results = []
    for experiment, configs, home in planned:
        began = time.perf_counter()
        data = make_plan(configs, {}).config["data"]
        arrays = read_arrays(data, Path(data_dir) if data_dir else None)
        with ray_session(address):
            home.claim(experiment.name, overwrite=overwrite)
            plan = make_plan(configs, ray.cluster_resources())
            description = experiment.to_json() | {
                "format": FORMAT,
                "config_keys": [*plan.config, "workers"],
                "state": "running",
                "provenance": provenance(),
            }
            home.write(description)
            if show_progress:
                numbers = ", ".join(map(str, plan.workers))
                print(f"timing {plan.num_timed_steps} steps on {numbers} workers ({plan.backend})", file=sys.stderr)
            state = "interrupted"
            try:
                rows = [{"experiment": experiment.name, **row} for row in measure(plan, home, arrays)]
                state = "finished"
            finally:
                description["provenance"] |= {"finished": now(), "wall_s": time.perf_counter() - began}
                home.write(description | {"state": state})
        history = pd.DataFrame({"trial_id": pd.Series([], dtype="str"), "step": pd.Series([], dtype="int64")})
        write_frames(home, trials_frame(rows, description["config_keys"]), history)
        results.append(load(home.path))
    return results


def measure(plan: Plan, home: ExperimentFolder, arrays: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Time a plan's configuration on each of its numbers of workers, on the connected cluster.

    Args:
        plan: What to measure.
        home: Where Ray Train keeps its own files.
        arrays: The data set of the plan, as ``read_arrays`` returns it.

    Returns:
        One row of the trials frame for each number of workers.

    Raises:
        TrialError: a worker ended before the measurement did.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    images = ray.put(arrays)
    trainer = TorchTrainer(
        time_workers,
        train_loop_config={"plan": asdict(plan), "images": [images], "called_at": time.time()},
        scaling_config=ScalingConfig(
            num_workers=max(plan.workers), use_gpu=plan.use_gpu, resources_per_worker=plan.resources_per_worker
        ),
        torch_config=TorchConfig(backend=plan.backend),
        run_config=RunConfig(name="train", storage_path=str(home.ray), failure_config=FailureConfig(max_failures=0)),
    )
    try:
        measured = trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), "no reason given")
        raise TrialError(
            f"a worker of the scaling measurement ended: {reason.strip()}; nothing was measured"
        ) from error
    if not measured:
        raise TrialError("the scaling measurement returned nothing; look at Ray's logs in " + str(home.ray))
    return [_row(plan, number, one) for number, one in enumerate(measured)]


def _row(plan: Plan, number: int, measured: Mapping[str, Any]) -> dict[str, Any]:
    """Return what one measurement says, in the units of the trials frame."""
    step_s = measured["timed_s"] / plan.num_timed_steps
    workers = measured["workers"]
    steps = plan.config["steps"]
    return {
        "trial_id": f"t{number:05d}",
        "status": "finished",
        "stop_reason": f"{plan.num_timed_steps} steps timed",
        **plan.config,
        "workers": workers,
        "train_s": step_s * steps,
        "extrapolated": plan.num_timed_steps < steps,
        "num_timed_steps": plan.num_timed_steps,
        "steps_run": plan.num_timed_steps,
        "step_s": step_s,
        "samples_per_s": plan.config["batch_size"] / step_s,
        "speedup": measured["one_worker_s"] / measured["timed_s"],
        "efficiency": measured["one_worker_s"] / measured["timed_s"] / workers,
        "startup_s": measured["startup_s"],
        "warmup_s": measured["warmup_s"],
        "setup_s": measured["startup_s"] + measured["warmup_s"],
        "backend": plan.backend,
        "cores_per_worker": measured["cores_per_worker"],
        "oversubscribed": plan.oversubscribed(workers),
        "host": measured["host"],
        "device": measured["device"],
    }

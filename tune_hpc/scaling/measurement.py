"""Scaling measurement: training time of shared batches on several workers, with gradients averaged at every step.

The start of a TorchTrainer takes many seconds (16 s on two cores), because four processes start one after the other and
each of them imports its libraries. So the largest number of workers starts once. Each measurement runs on the first n
of them, in a separate process group, while the others wait. The loop is timed after its warm-up steps; ``startup_s``
and ``warmup_s`` are the time before.

A trial is one case in one repeat. Its status is ``disturbed`` instead of ``finished`` if the rule of ``workers`` marks
it. Its columns beside the configuration, whose ``seed`` counts the repeats:

- ``step_s`` and its parts ``compute_s``, ``communicate_s`` (added by the gradient synchronization) and ``data_s``;
- ``train_s`` (seconds for ``steps`` steps), ``extrapolated`` (whether fewer steps were timed), ``num_timed_steps``,
  ``warmup_s``, ``startup_s``;
- ``global_batch_size`` (samples of all workers in one step), ``samples_per_s``, ``speedup`` (samples per second against
  one worker in the same repeat), ``efficiency`` (speed-up for each worker), ``worker_s`` (sum of ``train_s`` over the
  workers), ``gradient_bytes`` (averaged at every step), ``flop_per_gradient_byte`` (of the products and convolutions
  of a step over the whole batch; of each worker's batch in weak scaling);
- ``backend``, ``num_nodes``, ``cores_per_worker``, ``oversubscribed`` (more workers than cores, or than GPUs);
- the metrics of the trained model, if every step ran.

Short probes run between the cases. experiment.json has their rows as ``probes``, and the predictions of the step-time
model as ``predictions``, ``widths`` and ``width_curves``.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import pandas as pd
import ray
from ray import tune

from tune_hpc.analysis.frames import METRICS, trials_frame, write_frames
from tune_hpc.analysis.loading import load
from tune_hpc.analysis.results import Results
from tune_hpc.errors import InvalidConfigError, TrialError
from tune_hpc.learning.download import read_arrays
from tune_hpc.scaling.distributed_trial import run_workers
from tune_hpc.scaling.plan import GRADIENT_SYNC_KEYS, Plan, make_plan
from tune_hpc.scaling.step_time_model import predictions
from tune_hpc.scaling.workers import DISTURBED_FACTOR, time_workers
from tune_hpc.search.cluster import node_resources
from tune_hpc.search.experiment import Experiment, Space
from tune_hpc.search.experiment_json import check_same_search
from tune_hpc.search.provenance import provenance
from tune_hpc.search.ray_session import ray_session
from tune_hpc.storage.experiment_folder import FORMAT, ExperimentFolder, new_folder
from tune_hpc.storage.filesystem import Storage
from tune_hpc.storage.trial_file import now

#: Addition to the stop reason of a disturbed repeat.
DISTURBED = f", more than {DISTURBED_FACTOR} times as long as in the fastest repeat"


def measure(
    config: Mapping[str, Any],
    workers: Sequence[int] = (1, 2, 4),
    mode: str = "strong",
    repeats: int = 3,
    width: float | Sequence[float] | None = None,
    *,
    options: Sequence[str] = (),
    max_restarts: int = 0,
    spread: bool = False,
    output_dir: str | Path | None = None,
    overwrite: bool = False,
    num_timed_steps: int | None = None,
    address: str | None = None,
    data_dir: str | Path | None = None,
    show_progress: bool = True,
) -> Results:
    """Time a configuration on several numbers of workers.

    Args:
        config: Keys of a trial; missing keys take their defaults.
        workers: Numbers of workers.
        mode: ``strong``: workers share each batch; ``weak``: each worker has a batch of the full size.
        repeats: Number of repetitions, each with another seed; a disturbed one is followed by one more.
        width: Width or widths of the network; each is measured on each number of workers.
        options: Names in ``plan.OPTIONS``, each measured separately; ``none`` is the baseline.
        max_restarts: See ``run_all``, also for the errors.
        spread: See ``run_all``.
        output_dir: Experiment folder; by default a new one in ``runs``.
        overwrite: See ``run_all``.
        num_timed_steps: Number of timed steps; by default all on GPUs, and at most 100 on CPUs.
        address: See ``run_all``.
        data_dir: See ``run_all``.
        show_progress: See ``run_all``.

    Returns:
        One trial for each number of workers (and width) and each repeat, with the columns of this module.
    """
    varied: dict[str, list[Any]] = {"workers": list(workers)}
    if width is not None:
        varied["width"] = [width] if isinstance(width, int | float) else list(width)
    if options:
        varied["option"] = list(options)
    if empty := next((name for name, values in varied.items() if not values), None):
        raise InvalidConfigError(f"{empty} is empty; name at least one")
    fixed = {**config, "mode": mode, "repeats": repeats}
    if num_timed_steps is not None:
        fixed["num_timed_steps"] = num_timed_steps
    space = Space({**fixed, **{name: tune.choice(values) for name, values in varied.items()}}, keys={})
    experiment = Experiment(
        "scaling", space, "tune_hpc.scaling.workers:time_workers", metric="train_s", mode="min",
        title="Training time by workers", runner="scaling",
    )  # fmt: skip
    folder = Storage(output_dir).root if output_dir else new_folder(experiment.name)
    return run_all(
        [experiment], folders=[folder], overwrite=overwrite, address=address, data_dir=data_dir,
        show_progress=show_progress, max_restarts=max_restarts, spread=spread,
    )[0]  # fmt: skip


def run_all(
    experiments: Sequence[Experiment],
    *,
    folders: Sequence[str | Path],
    overwrite: bool = False,
    resume_started: bool = False,
    address: str | None = None,
    data_dir: str | Path | None = None,
    show_progress: bool = True,
    check_only: bool = False,
    max_restarts: int = 0,
    spread: bool = False,
    stream: TextIO | None = None,
    **search_options: Any,
) -> list[Results]:
    """Measure the configurations of each experiment.

    Args:
        experiments: Experiments over keys of a trial, and of ``plan.SCALING_KEYS``.
        folders: Experiment folder of each experiment.
        overwrite: Whether to replace the results of earlier runs of the same experiments.
        resume_started: Whether to load finished measurements from their folders; interrupted ones restart.
        address: Address of a Ray cluster; by default the connected one, else a local Ray.
        data_dir: Folder of the image data.
        show_progress: Whether to print a line about each measurement.
        check_only: Whether to run only the checks that need no cluster.
        max_restarts: Number of restarts of all workers after the loss of one; the last attempt counts.
        spread: Whether each worker needs a separate node.
        stream: Stream of messages; standard error by default.
        **search_options: Options of a search, which do not apply here.

    Raises:
        InvalidConfigError: a configuration breaks a rule.
        FolderError: a folder cannot be written, or contains something else.
        DataUnavailableError: the image data are missing and cannot be downloaded.
        ClusterError: the cluster does not exist, or has too few nodes.
        TrialError: a worker ended early.
    """
    if max_restarts < 0:
        raise InvalidConfigError(f"max_restarts must be at least 0; got {max_restarts}")
    stream = stream or sys.stderr
    planned = [
        (experiment, list(experiment.configs()), ExperimentFolder(path).absolute())
        for experiment, path in zip(experiments, folders, strict=True)
    ]
    finished = {folder.path for experiment, _, folder in planned if resume_started and _is_finished(experiment, folder)}
    for experiment, configs, folder in planned:
        make_plan(configs, {})
        if folder.path not in finished:
            folder.check_free(experiment.name, overwrite=overwrite or resume_started)
    if check_only:
        return []
    ignored = [name for name, value in search_options.items() if value and name not in ("attempt", "force")]
    if ignored:
        print(f"a scaling measurement ignores {', '.join(ignored)}", file=stream)
    results = []
    for experiment, configs, folder in planned:
        if folder.path not in finished:
            started = time.perf_counter()
            plan = make_plan(configs, {})
            arrays = read_arrays(plan.cases[0].config["data"], Path(data_dir) if data_dir else None)
            plan.check_fits(len(arrays["train_labels"]))
            with ray_session(address, with_state=True):
                last = folder.last_attempt()
                folder.claim(experiment.name, overwrite=overwrite or resume_started)
                folder.claim_attempt(last, search_options.get("attempt"))
                plan = make_plan(configs, ray.cluster_resources(), is_quick=experiment.quick)
                if spread:
                    plan.check_nodes(node_resources())
                if show_progress:
                    counts = ", ".join(map(str, plan.worker_counts))
                    work = f"{plan.cases[0].num_timed_steps} steps on {counts} workers ({plan.backend})"
                    print(f"timing {work}, {plan.repeats} times", file=stream)
                config_keys = _config_keys(configs, plan)
                rows = _measure_into(
                    folder, experiment, plan, arrays, config_keys, started, max_restarts=max_restarts, spread=spread
                )
            history = pd.DataFrame({"trial_id": pd.Series([], dtype="str"), "step": pd.Series([], dtype="int64")})
            folder.check_attempt()
            write_frames(folder, trials_frame(rows, config_keys), history)
        results.append(load(folder.path))
    return results


def _is_finished(experiment: Experiment, folder: ExperimentFolder) -> bool:
    """Return whether a folder contains the finished measurement of the experiment."""
    if not folder.holds_experiment:
        return False
    description = folder.read()
    check_same_search(experiment, description, folder.path)
    return bool(description.get("state") == "finished")


def _measure_into(
    folder: ExperimentFolder,
    experiment: Experiment,
    plan: Plan,
    arrays: Mapping[str, Any],
    config_keys: list[str],
    started: float,
    **options: Any,
) -> list[dict[str, Any]]:
    """Measure a plan, write experiment.json before and after, and return the rows of the trials frame."""
    description = experiment.to_json() | {
        "format": FORMAT,
        "config_keys": config_keys,
        "state": "running",
        "attempt": folder.attempt,
        "provenance": provenance(node_resources()),
    }
    folder.write(description)
    state = "interrupted"
    try:
        measured = run_workers(
            time_workers,
            {"plan": plan, "images": [ray.put(arrays)], "called_at": time.time()},
            num_workers=plan.max_workers,
            per_worker=plan.resources_per_worker,
            backend=plan.backend,
            folder=str(folder.ray),
            name="train",
            **options,
        )
        description |= {"probes": measured["probes"], **predictions(plan, pd.DataFrame(measured["probes"]))}
        state = "finished"
    except TrialError as error:
        raise TrialError(f"{error}; nothing was measured") from error.__cause__
    finally:
        description["provenance"] |= {"finished": now(), "wall_s": time.perf_counter() - started}
        folder.write(description | {"state": state})
    return [{"experiment": experiment.name, **_row(plan, *row)} for row in enumerate(measured["measured"])]


def _config_keys(configs: Sequence[Mapping[str, Any]], plan: Plan) -> list[str]:
    """Return the columns that identify a case: the keys of a trial, and the requested ones of the measurement."""
    optional = ("batches_per_step", *GRADIENT_SYNC_KEYS)
    requested = [name for name in optional if any(name in config for config in configs)]
    return [*plan.cases[0].requested_config, "workers", "mode", "option", *requested]


def _row(plan: Plan, number: int, measured: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of the trials frame from one measurement."""
    case = plan.cases[measured["case"]]
    step_s, steps = measured["step_s"], case.config["steps"]
    samples_per_s = case.batch_size / step_s
    speedup = samples_per_s / (case.single_worker.batch_size / measured["alone_s"])
    measured_columns = (
        *("step_s", "compute_s", "communicate_s", "data_s", "num_nodes", "startup_s", "warmup_s"),
        *("gradient_bytes", "flop_per_gradient_byte", "cores_per_worker", "host", "device"),
        *(name for name in METRICS if name in measured),
    )
    return {
        "trial_id": f"t{number:05d}",
        "status": "disturbed" if measured["disturbed"] else "finished",
        "stop_reason": f"{case.num_timed_steps} steps timed" + DISTURBED * measured["disturbed"],
        **case.requested_config,
        "seed": case.training_config(measured["repeat"])["seed"],
        **case.options,
        "global_batch_size": case.batch_size,
        "train_s": step_s * steps,
        "worker_s": step_s * steps * case.workers,
        "extrapolated": not case.covers_all_steps,
        "num_timed_steps": case.num_timed_steps,
        "steps_run": case.num_timed_steps,
        **{name: measured[name] for name in measured_columns},
        "samples_per_s": samples_per_s,
        "speedup": speedup,
        "efficiency": speedup / case.workers,
        "setup_s": measured["startup_s"] + measured["warmup_s"],
        "backend": plan.backend,
        "oversubscribed": plan.is_oversubscribed(case.workers),
    }

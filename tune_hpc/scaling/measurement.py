"""Training time on several workers: a batch shared by all of them, its gradients averaged at every step.

A TorchTrainer costs many seconds before its function is entered: four process starts one after the other (of 16 s on
two cores 5 for Ray Train's controller, 2 for the cleaner of its placement group, 5 for the workers with their import of
torch, 5 for what they share), each of them imports. So the largest number of workers is started once, and each
measurement runs on exactly its number of them, in a process group of their own, while the others wait. What is timed is
the loop after its first steps, with the workers in step; what came before is ``startup_s`` and ``warmup_s``.

A trial is one case in one repeat. Columns of the trials frame beside the configuration (whose ``seed`` counts the
repeats): ``step_s`` and its parts ``compute_s``, ``communicate_s`` (what the exchange of gradients adds) and
``data_s``; ``train_s`` (seconds for ``steps`` steps), ``extrapolated`` (whether that was computed from fewer steps),
``num_timed_steps``, ``warmup_s``, ``startup_s``, ``global_batch_size`` (what a step of all workers sees),
``samples_per_s``, ``speedup`` (samples a second against one worker's in the same repeat) and ``efficiency`` (that for
each worker), ``worker_s`` (``train_s`` of all workers together), ``gradient_bytes`` (averaged at every step),
``backend``, ``num_nodes``, ``cores_per_worker`` and ``oversubscribed`` (more workers than cores, or than GPUs). Where
every step was run, the trial has the metrics of the model that came of it, too.

Between the cases short probes are run (probes.py); they, and what the model says from them (model.py), are in
experiment.json as ``probes`` and ``predictions``.
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
from tune_hpc.analysis.results import Results, load
from tune_hpc.errors import InvalidConfigError, TrialError
from tune_hpc.learning.download import read_arrays
from tune_hpc.scaling.plan import GRADIENT_SYNC_KEYS, Plan, make_plan
from tune_hpc.scaling.step_time_model import min_efficient_width, predictions, width_curves
from tune_hpc.scaling.trainer import run_workers
from tune_hpc.scaling.workers import time_workers
from tune_hpc.search.experiment import Experiment, Space
from tune_hpc.search.provenance import now, provenance
from tune_hpc.search.ray_session import node_resources, ray_session
from tune_hpc.storage.experiment_folder import FORMAT, ExperimentFolder, new_folder
from tune_hpc.storage.filesystem import Storage


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
    """Time a configuration on several workers.

    Args:
        config: Keys of a trial; what is left out takes its default.
        workers: Numbers of workers.
        mode: ``strong``: they share each batch; ``weak``: each has a batch of its own.
        repeats: How often, each time with another seed.
        width: The network's, or several of them: each is measured on each number of workers.
        options: Names of ``plan.OPTIONS``: each is measured by itself; ``none`` is the plain way.
        max_restarts: How often all workers begin anew where one was lost; what is measured is then the last attempt.
        spread: Whether each worker is to be on a node of its own.
        output_dir: The experiment folder; by default a new one in ``runs``.
        overwrite: Replace an earlier measurement there.
        num_timed_steps: Steps under the clock; by default all on GPUs, and at most 100 on CPUs.
        address: A Ray cluster; by default the one already connected to, else Ray is started on this machine.
        data_dir: Where the image data are, or are to be put.
        show_progress: Whether to say in a line what is being measured.

    Returns:
        One trial for each number of workers (and width) and each repeat; the columns are those of this module.

    Raises:
        InvalidConfigError: a rule of the configuration is broken.
        FolderError: a folder that cannot be written, or holds something else.
        DataUnavailableError: image data that are not here and cannot be fetched.
        ClusterError: no such cluster.
        TrialError: a worker ended before the measurement did.
    """
    several: dict[str, list[Any]] = {"workers": list(workers)}
    if width is not None:
        several["width"] = [width] if isinstance(width, int | float) else list(width)
    if options:
        several["option"] = list(options)
    if empty := next((name for name, values in several.items() if not values), None):
        raise InvalidConfigError(f"{empty} is empty; name at least one")
    fixed = {**config, "mode": mode, "repeats": repeats}
    if num_timed_steps is not None:
        fixed["num_timed_steps"] = num_timed_steps
    space = Space({**fixed, **{name: tune.choice(values) for name, values in several.items()}}, keys={})
    experiment = Experiment(
        "scaling", space, "tune_hpc.scaling.workers:time_workers", metric="train_s", mode="min",
        title="Training time by workers", runner=f"{__name__}:run_all",
    )  # fmt: skip
    home = Storage(output_dir).root if output_dir else new_folder(experiment.name)
    return run_all(
        [experiment], folders=[home], overwrite=overwrite, address=address, data_dir=data_dir,
        show_progress=show_progress, max_restarts=max_restarts, spread=spread,
    )[0]  # fmt: skip


def run_all(
    experiments: Sequence[Experiment],
    *,
    folders: Sequence[str | Path],
    overwrite: bool = False,
    go_on: bool = False,
    address: str | None = None,
    data_dir: str | Path | None = None,
    show_progress: bool = True,
    check_only: bool = False,
    max_restarts: int = 0,
    spread: bool = False,
    stream: TextIO | None = None,
    **search_options: Any,
) -> list[Results]:
    """Measure each experiment's configurations on each of its numbers of workers.

    Args:
        experiments: Spaces of keys of a trial, and of ``plan.SCALING_KEYS``.
        folders: One experiment folder each.
        overwrite: Replace what earlier runs of the same experiments left there.
        go_on: Keep what a folder holds of a finished measurement; one that was interrupted begins anew.
        address: A Ray cluster; by default the one already connected to, else Ray is started on this machine.
        data_dir: Where the image data are, or are to be put.
        show_progress: Whether to say in a line what is being measured.
        check_only: Refuse what can be refused without a cluster, and start nothing.
        max_restarts: See ``measure``.
        spread: See ``measure``.
        stream: Where to say it; standard error by default.
        **search_options: Options of a search, which have no meaning here.

    Raises:
        InvalidConfigError: a rule of the configuration is broken.
        FolderError: a folder that cannot be written, or holds something else.
        DataUnavailableError: image data that are not here and cannot be fetched.
        ClusterError: no such cluster.
        TrialError: a worker ended before the measurement did.
    """
    if max_restarts < 0:
        raise InvalidConfigError(f"max_restarts must be at least 0; got {max_restarts}")
    planned = [
        (one, list(one.configs()), ExperimentFolder(path).absolute())
        for one, path in zip(experiments, folders, strict=True)
    ]
    kept = {home.path for experiment, _, home in planned if go_on and _is_measured(experiment, home)}
    for experiment, configs, home in planned:
        make_plan(configs, {})
        if home.path not in kept:
            home.check_free(experiment.name, overwrite=overwrite or go_on)
    if check_only:
        return []
    ignored = [name for name, value in search_options.items() if value and name not in ("attempt", "force")]
    if ignored:
        print(f"a scaling measurement takes no notice of {', '.join(ignored)}", file=stream or sys.stderr)
    results = []
    for experiment, configs, home in planned:
        if home.path in kept:
            results.append(load(home.path))
            continue
        began = time.perf_counter()
        planned_here = make_plan(configs, {})
        arrays = read_arrays(planned_here.cases[0].config["data"], Path(data_dir) if data_dir else None)
        planned_here.check_fits(len(arrays["train_labels"]))
        with ray_session(address, with_state=True):
            last = home.last_attempt()
            home.claim(experiment.name, overwrite=overwrite or go_on)
            home.claim_attempt(last, search_options.get("attempt"))
            plan = make_plan(configs, ray.cluster_resources(), is_quick=experiment.quick)
            if spread:
                plan.check_nodes(node_resources())
            description = experiment.to_json() | {
                "format": FORMAT,
                "config_keys": _config_keys(configs, plan),
                "state": "running",
                "attempt": home.attempt,
                "provenance": provenance(),
            }
            home.write(description)
            if show_progress:
                numbers = ", ".join(str(number) for number in dict.fromkeys(case.workers for case in plan.cases))
                what = f"{plan.cases[0].num_timed_steps} steps on {numbers} workers ({plan.backend})"
                print(f"timing {what}, {plan.repeats} times", file=stream or sys.stderr)
            state = "interrupted"
            try:
                measured = time_plan(plan, home, arrays, max_restarts=max_restarts, spread=spread)
                rows = [{"experiment": experiment.name, **row} for row in measured["rows"]]
                description |= {"probes": measured["probes"], **_predicted(plan, measured["probes"])}
                state = "finished"
            finally:
                description["provenance"] |= {"finished": now(), "wall_s": time.perf_counter() - began}
                home.write(description | {"state": state})
        history = pd.DataFrame({"trial_id": pd.Series([], dtype="str"), "step": pd.Series([], dtype="int64")})
        home.check_attempt()
        write_frames(home, trials_frame(rows, description["config_keys"]), history)
        results.append(load(home.path))
    return results


def _is_measured(experiment: Experiment, home: ExperimentFolder) -> bool:
    """Whether a folder holds the same measurement, and it came to its end."""
    if not home.holds_experiment:
        return False
    held = home.read()
    experiment.check_matches(held, home.path)
    return bool(held.get("state") == "finished")


def time_plan(
    plan: Plan, home: ExperimentFolder, arrays: Mapping[str, Any], *, max_restarts: int = 0, spread: bool = False
) -> dict[str, list[dict[str, Any]]]:
    """Time a plan's cases on the connected cluster.

    Args:
        plan: What to measure.
        home: Where Ray Train keeps its own files.
        arrays: The data set of the plan, as ``read_arrays`` returns it.
        max_restarts: See ``measure``.
        spread: See ``measure``.

    Returns:
        ``rows``, one of the trials frame for each case and repeat, and ``probes``, a mapping each.

    Raises:
        TrialError: a worker ended before the measurement did.
    """
    settings = {"plan": plan, "images": [ray.put(arrays)], "called_at": time.time()}
    try:
        measured = run_workers(
            time_workers,
            settings,
            num_workers=plan.max_workers,
            per_worker=plan.resources_per_worker,
            backend=plan.backend,
            folder=str(home.ray),
            name="train",
            max_restarts=max_restarts,
            spread=spread,
        )
    except TrialError as error:
        raise TrialError(f"{error}; nothing was measured") from error.__cause__
    if not measured:
        raise TrialError("the scaling measurement returned nothing; look at Ray's logs in " + str(home.ray))
    rows = [_row(plan, number, one) for number, one in enumerate(measured["measured"])]
    return {"rows": rows, "probes": measured["probes"]}


def _config_keys(configs: Sequence[Mapping[str, Any]], plan: Plan) -> list[str]:
    """Return the keys that tell cases apart: a trial's, and those of the measurement that were asked for."""
    own = ("workers", "mode", "option")
    asked = [name for name in ("batches_per_step", *GRADIENT_SYNC_KEYS) if any(name in config for config in configs)]
    return [*plan.cases[0].asked, *own, *asked]


def _predicted(plan: Plan, probes: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return what the probes say of what was measured, and of more: ``predictions``, ``widths`` and so on."""
    cases = [
        {
            "workers": case.workers,
            "mode": case.mode,
            "width": case.config["width"] if case.config["model"] == "cnn" else 1.0,
            "batch_size": case.config["batch_size"],
        }
        for case in plan.cases
    ]
    table = pd.DataFrame(probes)
    batch_size = plan.cases[0].alone.batch_size
    numbers = [number for number in sorted({2, 4, *plan.numbers}) if 1 < number <= batch_size]
    return {
        "predictions": predictions(table, cases),
        "widths": min_efficient_width(table, numbers, batch_size),
        "width_curves": width_curves(table, numbers, batch_size),
    }


def _row(plan: Plan, number: int, measured: Mapping[str, Any]) -> dict[str, Any]:
    """Return what one measurement says, in the units of the trials frame."""
    case = plan.cases[measured["case"]]
    step_s, steps = measured["step_s"], case.config["steps"]
    samples_per_s = case.batch_size / step_s
    speedup = samples_per_s / (case.alone.batch_size / measured["alone_s"])
    return {
        "trial_id": f"t{number:05d}",
        "status": "finished",
        "stop_reason": f"{case.num_timed_steps} steps timed",
        **case.asked,
        "seed": case.training_config(measured["repeat"])["seed"],
        **case.options,
        "global_batch_size": case.batch_size,
        "train_s": step_s * steps,
        "worker_s": step_s * steps * case.workers,
        "extrapolated": not case.is_whole,
        "num_timed_steps": case.num_timed_steps,
        "steps_run": case.num_timed_steps,
        **{name: measured[name] for name in (*("step_s", "compute_s", "communicate_s", "data_s"), "num_nodes")},
        **{name: measured[name] for name in METRICS if name in measured},
        "samples_per_s": samples_per_s,
        "speedup": speedup,
        "efficiency": speedup / case.workers,
        "startup_s": measured["startup_s"],
        "warmup_s": measured["warmup_s"],
        "setup_s": measured["startup_s"] + measured["warmup_s"],
        "gradient_bytes": measured["gradient_bytes"],
        "backend": plan.backend,
        "cores_per_worker": measured["cores_per_worker"],
        "oversubscribed": plan.is_oversubscribed(case.workers),
        "host": measured["host"],
        "device": measured["device"],
    }

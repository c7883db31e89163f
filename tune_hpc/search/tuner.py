"""Runs experiments on Ray Tune.

Several experiments share one run: their trials queue for the same actors, so that what a process start and an
``import torch`` cost is paid once. A trial of Ray's carries a bundle of ours (bundles.py). Each of our trials leaves
one file in its experiment's folder (trial.py); when the run ends these become the two frames. Ray's own files are kept
beside them and are needed for nothing.
"""

import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher

from tune_hpc.analysis.folder import FORMAT, ExperimentFolder
from tune_hpc.analysis.results import Results, TrialRecord, load, write_frames, write_part
from tune_hpc.errors import ClusterError, FolderError, InvalidExperimentError
from tune_hpc.learning.config import complete
from tune_hpc.learning.image_files import read_arrays
from tune_hpc.search.bundles import check_fuse, plan_bundles, say_what_runs_alone
from tune_hpc.search.experiment import TRAIN, Experiment
from tune_hpc.search.provenance import now, provenance
from tune_hpc.search.reference import load_reference
from tune_hpc.search.resources import TrialResources, check_request, choose_resources
from tune_hpc.search.session import node_resources, ray_session
from tune_hpc.search.trial import Assignment, identity, run_bundle
from tune_hpc.search.watcher import Watcher


def run(experiment: Experiment, *, output_dir: str | Path | None = None, **options: Any) -> Results:
    """Run one experiment and return what happened.

    Args:
        experiment: What to run.
        output_dir: The experiment folder; by default a new one, ``runs/NAME`` or ``runs/NAME-2`` and so on.
        **options: Those of ``run_all``.

    Raises:
        TuneHpcError: a rule is broken; nothing was started.
    """
    folder = Path(output_dir) if output_dir is not None else new_folder(experiment.name)
    return run_all([experiment], folders=[folder], **options)[0]


def run_all(
    experiments: Sequence[Experiment],
    *,
    folders: Sequence[str | Path],
    overwrite: bool = False,
    address: str | None = None,
    cpus_per_trial: float | None = None,
    gpus_per_trial: float | None = None,
    max_concurrent: int | None = None,
    fuse: str | int = "auto",
    data_dir: str | Path | None = None,
    checkpoint_interval_s: float = 60.0,
    show_progress: bool = True,
    check_only: bool = False,
) -> list[Results]:
    """Run several experiments as one stream of trials.

    Args:
        experiments: What to run, in this order.
        folders: One experiment folder each, on storage that every node of the cluster sees.
        overwrite: Replace what earlier runs of the same experiments left there.
        address: A Ray cluster; by default the one already connected to, else Ray is started on this machine.
        cpus_per_trial: CPU cores a trial; by default 1.
        gpus_per_trial: GPUs a trial, a fraction to share one; by default a fair share of what the cluster has.
        max_concurrent: Upper bound on the trials, or programs of several, that run at once.
        fuse: How many trials train as one program at most: ``auto`` where it pays, ``off``, or a number. A fused trial
            agrees with a separate one within rounding.
        data_dir: Where the image data are, or are to be put.
        checkpoint_interval_s: Seconds between two kept states of a trial; one that is interrupted goes on from there.
        show_progress: Whether to show a progress bar, or a line a minute where there is no terminal.
        check_only: Refuse what can be refused without a cluster, and start nothing.

    Returns:
        One per experiment, in order.

    Raises:
        InvalidExperimentError: two experiments of one name, or options that contradict one another.
        InvalidConfigError: a configuration that the trainable would refuse.
        FolderError: a folder that cannot be written, or holds something else.
        DataUnavailableError: image data that are not here and cannot be fetched.
        ClusterError: no such cluster, or one on which no trial fits.
    """
    check_request(cpus_per_trial, gpus_per_trial, max_concurrent)
    fuse = check_fuse(fuse)
    names = [experiment.name for experiment in experiments]
    if len(set(names)) < len(names) or len(folders) != len(names):
        raise InvalidExperimentError(f"each experiment is given once, with a folder of its own; got {', '.join(names)}")
    samples = {experiment.name: _samples(experiment) for experiment in experiments}
    trainables = {experiment.name: _by_value(experiment.trainable) for experiment in experiments}
    homes = {name: ExperimentFolder(Path(folder).absolute()) for name, folder in zip(names, folders, strict=True)}
    for name, home in homes.items():
        home.check_free(name, overwrite=overwrite)
    ordered = [sample for name in names for sample in samples[name]]
    if check_only:
        return []
    image_sets = _image_sets(experiments, samples, data_dir)

    with ray_session(address):
        say_what_runs_alone(trainables, fuse)
        resources = choose_resources(node_resources(), len(ordered), cpus_per_trial, gpus_per_trial, max_concurrent)
        bundles = plan_bundles(ordered, trainables, fuse, resources.num_slots, resources.gpus > 0)
        origin = provenance()
        descriptions = {}
        for position, experiment in enumerate(experiments):
            home = homes[experiment.name]
            home.claim(experiment.name, overwrite=overwrite)
            descriptions[experiment.name] = experiment.to_json() | {
                "format": FORMAT,
                "position": position,
                "config_keys": list(dict.fromkeys(key for one in samples[experiment.name] for key in one["config"])),
                "state": "running",
                "provenance": origin,
            }
            home.write(descriptions[experiment.name])
        assignments = {
            one.name: Assignment(
                one.name, str(homes[one.name].path), trainables[one.name], one.metric, checkpoint_interval_s
            )
            for one in experiments
        }
        watcher = Watcher(len(ordered), {one.name: one for one in experiments}, homes, show_progress)
        images = {name: ray.put(arrays) for name, arrays in image_sets.items()}
        try:
            _fit(deque(bundles), assignments, images, resources, homes[names[0]].ray, watcher)
        except (ray.exceptions.RayError, tune.TuneError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ClusterError(f"the cluster was lost: {reason}; the trials that ended are in {folders[0]}") from error
        finally:
            for name, home in homes.items():
                _gather(home, descriptions[name], watcher)
    return [load(home.path) for home in homes.values()]


def new_folder(name: str, parent: str | Path = "runs") -> Path:
    """Return ``runs/NAME``, or ``runs/NAME-2`` and so on where that is taken."""
    number = 1
    while True:
        folder = Path(parent) / (name if number == 1 else f"{name}-{number}")
        if not folder.exists():
            return folder
        number += 1


class _Queue(Searcher):
    """Hands out bundles that were made beforehand, in order."""

    def __init__(self, bundles: deque[dict[str, Any]]) -> None:
        super().__init__()
        self._bundles = bundles

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        return self._bundles.popleft() if self._bundles else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        raise FolderError("Ray's own state does not bring a search back; its experiment folder does")


def _samples(experiment: Experiment) -> list[dict[str, Any]]:
    """Return what the searcher proposes: every trial of an experiment, its configuration checked and complete."""
    whole = complete if experiment.trainable == TRAIN else dict
    return [
        {"experiment": experiment.name, "trial_id": f"t{number:05d}", "config": whole(config)}
        for number, config in enumerate(experiment.configs())
    ]


def _by_value(trainable: str | Callable[..., Any]) -> str | Callable[..., Any]:
    """Return a user's trainable such that it reaches machines that do not have its module."""
    if trainable == TRAIN:
        return trainable
    function = load_reference(trainable) if isinstance(trainable, str) else trainable
    module = sys.modules.get(getattr(function, "__module__", ""))
    file = getattr(module, "__file__", None)
    if module is not None and file and "site-packages" not in file and not module.__name__.startswith("tune_hpc."):
        ray.cloudpickle.register_pickle_by_value(module)
    return function


def _image_sets(
    experiments: Sequence[Experiment], samples: Mapping[str, list[dict[str, Any]]], data_dir: str | Path | None
) -> dict[str, Any]:
    """Load the image data that any trial needs, once for all of them."""
    ours = [one.name for one in experiments if one.trainable == TRAIN]
    needed = sorted({sample["config"]["data"] for name in ours for sample in samples[name]} - {"line"})
    if not needed:
        return {}
    return {name: read_arrays(name, Path(data_dir) if data_dir else None) for name in needed}


def _fit(
    queue: deque[dict[str, Any]],
    assignments: Mapping[str, Assignment],
    images: Mapping[str, ray.ObjectRef],
    resources: TrialResources,
    storage: Path,
    watcher: Watcher,
) -> None:
    """Run every bundle on Ray Tune; an interrupt leaves the rest in the queue."""
    trainable = tune.with_parameters(run_bundle, assignments=assignments, images=images)
    tuner = tune.Tuner(
        tune.with_resources(trainable, resources.as_ray()),
        tune_config=tune.TuneConfig(
            search_alg=_Queue(queue),
            num_samples=len(queue),
            max_concurrent_trials=resources.num_slots,
            reuse_actors=True,
            trial_name_creator=lambda trial: trial.config["bundle_id"],
            trial_dirname_creator=lambda trial: (
                f"{trial.config['members'][0]['experiment']}.{trial.config['bundle_id']}"
            ),
        ),
        run_config=tune.RunConfig(
            name=storage.name,
            storage_path=str(storage.parent),
            callbacks=[watcher],
            failure_config=tune.FailureConfig(max_failures=1),
            verbose=0,
        ),
    )
    with (
        _environment(
            TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
            # Without it a searcher's next trial is made only when the last one runs.
            TUNE_MAX_PENDING_TRIALS_PG=str(2 * resources.num_slots),
            RAY_CHDIR_TO_TRIAL_DIR="0",
            RAY_AIR_NEW_OUTPUT="0",
        ),
        watcher.progress or nullcontext(),
    ):
        tuner.fit()


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Set environment variables inside the block; Ray Tune reads some settings from nowhere else."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _gather(home: ExperimentFolder, description: dict[str, Any], watcher: Watcher) -> None:
    """Make the two frames of what the trials left; their own files go once every one of them is in.

    A trial that was interrupted is listed as running, and keeps its checkpoint.
    """
    unfinished = watcher.unfinished(description["name"])
    for sample in unfinished:
        row = identity(sample["experiment"], sample["trial_id"], sample["config"])
        write_part(home.part(sample["trial_id"]), row | {"status": "running"}, TrialRecord({}).history())
    results = load(home.path)
    write_frames(home, results.trials, results.history)
    # Trials that Ray had asked for but not yet begun are in no list of ours: only counting tells.
    is_whole = len(results.trials) == description["num_trials"] and not unfinished
    ended = {"finished": now(), "wall_s": watcher.seconds(description["name"])}
    state = "finished" if is_whole else "interrupted"
    home.write(description | {"state": state, "provenance": description["provenance"] | ended})
    if is_whole:
        shutil.rmtree(home.parts, ignore_errors=True)

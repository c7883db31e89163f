"""Fair comparison of methods: each is tuned with the same budget, and its best configuration runs with fresh seeds.

Source: Deep learning tuning playbook (Godbole et al., 2023): scientific and nuisance parameters.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tune_hpc.analysis.loading import load
from tune_hpc.analysis.results import Results
from tune_hpc.errors import FolderError, InvalidExperimentError, TrialError
from tune_hpc.search.experiment import Experiment
from tune_hpc.search.runner import resume, run_all
from tune_hpc.search.space.conditional import when
from tune_hpc.search.space.parameter import identity
from tune_hpc.search.space.space import Space
from tune_hpc.storage.experiment_folder import ExperimentFolder, new_folder


@dataclass(frozen=True)
class TuningComparison:
    """Results of a comparison.

    Attributes:
        arms: Search of each value, or combination of values, of the scientific parameters.
        winners: Best configuration of each arm, with fresh seeds.
    """

    arms: Sequence[Results]
    winners: Results


def compare(
    experiment: Experiment, *, budget: int, seeds: int = 5, output_dir: str | Path | None = None, **options: Any
) -> TuningComparison:
    """Tune each value of the scientific parameters with the same budget, and run the winners with fresh seeds.

    Each arm has the searcher of the experiment, or ``quasi_random`` instead of ``grid``. A second call with the same
    folder resumes an interrupted comparison.

    Args:
        experiment: Its space has scientific parameters; the other parameters are tuned for each of their values.
        budget: Number of configurations of each arm; an arm with fewer tries all of them.
        seeds: Number of seeds of each winner, none of them used in the search.
        output_dir: Parent of the folders of the arms and of ``winners``; by default a new folder below ``runs``.
        **options: Options of ``run_all``.

    Raises:
        InvalidExperimentError: There is nothing to compare, or the budget or the number of seeds is below 1.
        TrialError: No trial of an arm finished.
        TuneHpcError: As ``run_all``.

    Example:
        >>> from ray import tune
        >>> from tune_hpc import Experiment, Space, compare
        >>> def train(config, report):
        ...     report(1, {"loss": (config["x"] - config["center"]) ** 2 + config["seed"] / 100})
        >>> parameters = {"center": tune.choice([0.0, 5.0]), "x": tune.uniform(0, 1)}
        >>> space = Space(parameters, roles={"center": "scientific"})
        >>> options = {"metric": "loss", "mode": "min", "searcher": "random", "num_samples": 2}
        >>> experiment = Experiment("parabola", space, train, **options)
        >>> outcome = compare(experiment, budget=3, seeds=2, output_dir="runs/centers", show_progress=False)
        >>> outcome.winners.trials.groupby("center").size().to_dict()
        {0.0: 2, 5.0: 2}
    """
    if not experiment.space.scientific:
        raise InvalidExperimentError(
            f"{experiment.name} has nothing to compare; give its space roles={{PARAMETER: 'scientific'}}"
        )
    if budget < 1 or seeds < 1:
        raise InvalidExperimentError(f"budget and seeds must be at least 1; got {budget} and {seeds}")
    parent = Path(output_dir) if output_dir is not None else new_folder(f"{experiment.name}.compare")
    space = experiment.space
    combinations = itertools.product(*(space.reachable_values(name) for name in space.scientific))
    values = [dict(zip(space.scientific, combination, strict=True)) for combination in combinations]
    arms = [_arm(experiment, value, budget) for value in values]
    results = _run_or_resume(arms, [parent / arm.name.removeprefix(f"{experiment.name}.") for arm in arms], options)
    _check_finished(results, parent)
    final = _winners(experiment, values, results, seeds)
    (winners,) = _run_or_resume([final], [parent / "winners"], options)
    return TuningComparison(results, winners)


def _arm(experiment: Experiment, value: Mapping[str, Any], budget: int) -> Experiment:
    space = experiment.space | value
    levels = ", ".join(f"{name}={level}" for name, level in value.items())
    changes = {
        "name": f"{experiment.name}.{'-'.join(map(str, value.values()))}",
        "space": space,
        "published": (),
        "title": f"{experiment.title or experiment.name}: {levels}",
    }
    if space.size is not None and space.size <= budget:
        return experiment.replace(**changes, searcher="grid", num_samples=None, points_to_evaluate=())
    searcher = "quasi_random" if experiment.searcher == "grid" else experiment.searcher
    points = [
        point
        for point in experiment.points_to_evaluate
        if all(identity(point.get(name, level)) == identity(level) for name, level in value.items())
    ]
    return experiment.replace(**changes, searcher=searcher, num_samples=budget, points_to_evaluate=points[:budget])


def _winners(
    experiment: Experiment, values: Sequence[Mapping[str, Any]], arms: Sequence[Results], seeds: int
) -> Experiment:
    """Return the experiment that runs each arm's best configuration with seeds that the search did not use."""
    space = experiment.space
    tuned: dict[str, Any] = {}
    for value, arm in zip(values, arms, strict=True):
        if arm.metric not in arm.trials or arm.top(1).empty:
            raise TrialError(f"no trial of {arm.name} finished, so that it has no winner; see {arm.folder}")
        config = (space | value).config_in(arm.best_config())
        assert config is not None, f"{arm.best_config()} is no configuration of {arm.name}"
        for name in space.varying:
            if name not in space.scientific and name in config:
                case = when(config[name], **value)
                tuned[name] = tuned[name] | case if name in tuned else case
    fixed = {name: space[name] for name in space if name not in space.varying or name in space.scientific}
    first = max(experiment.seeds, default=-1) + 1
    return experiment.replace(
        name=f"{experiment.name}.winners",
        space=Space({**fixed, **tuned}, keys=space.value_keys, roles=dict.fromkeys(space.scientific, "scientific")),
        searcher="grid",
        num_samples=None,
        points_to_evaluate=(),
        scheduler="none",
        seeds=tuple(range(first, first + seeds)),
        published=(),
        title=f"{experiment.title or experiment.name}: best configurations, fresh seeds",
    )


def _check_finished(results: Sequence[Results], parent: Path) -> None:
    """Raise after a search that stopped early, perhaps at the request of the user."""
    for arm in results:
        if arm.experiment["state"] != "finished":
            reason = arm.experiment.get("ended_by") or "interrupted"
            remedy = "call it again with this folder to resume it"
            raise TrialError(f"the comparison in {parent} stopped: {reason}; {remedy}")


def _run_or_resume(
    experiments: Sequence[Experiment], folders: Sequence[Path], options: Mapping[str, Any]
) -> list[Results]:
    """Run experiments without results, and resume interrupted ones."""
    new = []
    for experiment, folder in zip(experiments, folders, strict=True):
        if not ExperimentFolder(folder).holds_experiment:
            new.append((experiment, folder))
            continue
        before = load(folder).experiment
        requested = experiment.to_json()
        if any(before.get(name) != requested[name] for name in ("name", "space", "num_samples", "seeds")):
            raise FolderError(f"{folder} has a search of another comparison; choose another output folder")
        if before["state"] != "finished":
            _check_finished(resume(folder, trainable=experiment.trainable, **options), folder.parent)
    if new:
        run_all([experiment for experiment, _ in new], folders=[folder for _, folder in new], **options)
    return [load(folder) for folder in folders]

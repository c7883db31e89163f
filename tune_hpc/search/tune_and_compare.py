"""A fair comparison: every value of what is compared is tuned with the same budget, and its winner run anew.

    from tune_hpc import compare
    outcome = compare(experiment, budget=20, seeds=5)      # experiment.space has roles={"optimizer": "scientific"}
    outcome.winners.trials                                 # each optimizer at its own best configuration, five seeds

Source: the deep learning tuning playbook (Godbole et al., 2023): scientific and nuisance parameters.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tune_hpc.analysis.results import Results, load
from tune_hpc.errors import FolderError, InvalidExperimentError, TrialError
from tune_hpc.search.experiment import Experiment
from tune_hpc.search.runner import resume, run_all
from tune_hpc.search.space.conditional import when
from tune_hpc.search.space.space import Space
from tune_hpc.storage.experiment_folder import ExperimentFolder, new_folder


@dataclass(frozen=True)
class TuningComparison:
    """What a comparison found.

    Attributes:
        arms: The search of each value, or combination of values, of the scientific parameters.
        winners: The best configuration of each, run with fresh seeds.
    """

    arms: Sequence[Results]
    winners: Results


def compare(
    experiment: Experiment, *, budget: int, seeds: int = 5, output_dir: str | Path | None = None, **options: Any
) -> TuningComparison:
    """Tune each value of the scientific parameters with the same budget, and run the winners with fresh seeds.

    An arm is searched by the experiment's searcher; where that is ``grid``, quasi-randomly. Called once more with the
    same folder, it goes on where it was interrupted.

    Args:
        experiment: Its space has scientific parameters, and what else varies is tuned for each of their values.
        budget: How many configurations each arm tries; all of them, where an arm has fewer.
        seeds: How many seeds each winner runs with, none of them used in the search.
        output_dir: Where the arms' folders and ``winners`` go; by default a new one below ``runs``.
        **options: Those of ``run_all``.

    Raises:
        InvalidExperimentError: nothing to compare, or a budget or a number of seeds below 1.
        TrialError: an arm without a trial that ended well.
        TuneHpcError: as ``run_all``.

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
    values = list(_values(experiment.space))
    arms = [_arm(experiment, value, budget) for value in values]
    results = _run_or_go_on(arms, [parent / one.name.removeprefix(f"{experiment.name}.") for one in arms], options)
    _check_whole(results, parent)
    final = _winners(experiment, values, results, seeds)
    (winners,) = _run_or_go_on([final], [parent / "winners"], options)
    return TuningComparison(results, winners)


def _values(space: Space) -> Iterator[dict[str, Any]]:
    """Yield each combination of the scientific parameters' values."""
    for combination in itertools.product(*(space.reachable_values(name) for name in space.scientific)):
        yield dict(zip(space.scientific, combination, strict=True))


def _arm(experiment: Experiment, value: Mapping[str, Any], budget: int) -> Experiment:
    space = experiment.space | value
    own = {
        "name": f"{experiment.name}.{'-'.join(map(str, value.values()))}",
        "space": space,
        "published": (),
        "title": f"{experiment.title or experiment.name}: {', '.join(f'{name}={one}' for name, one in value.items())}",
    }
    if space.size is not None and space.size <= budget:
        return experiment.replace(**own, searcher="grid", num_samples=None)
    searcher = "quasi_random" if experiment.searcher == "grid" else experiment.searcher
    return experiment.replace(**own, searcher=searcher, num_samples=budget)


def _winners(
    experiment: Experiment, values: Sequence[Mapping[str, Any]], arms: Sequence[Results], seeds: int
) -> Experiment:
    """Return the experiment that runs each arm's best configuration with seeds that the search did not use."""
    space = experiment.space
    tuned: dict[str, Any] = {}
    for value, arm in zip(values, arms, strict=True):
        if arm.metric not in arm.trials or arm.top(1).empty:
            raise TrialError(f"no trial of {arm.name} ended well, so it has no winner; look into {arm.folder}")
        best = {str(name): one for name, one in arm.best().items()}
        config = (space | value).config_in(best) or {}
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
        scheduler="none",
        seeds=tuple(range(first, first + seeds)),
        published=(),
        title=f"{experiment.title or experiment.name}: each at its best, fresh seeds",
    )


def _check_whole(results: Sequence[Results], parent: Path) -> None:
    """Refuse to go on after a search that ended before its time, which may have been the user's wish."""
    if any(one.experiment["state"] != "finished" for one in results):
        raise TrialError(f"the comparison in {parent} was interrupted; call it again with this folder, and it goes on")


def _run_or_go_on(
    experiments: Sequence[Experiment], folders: Sequence[Path], options: Mapping[str, Any]
) -> list[Results]:
    """Run experiments, those of them that have not been, and resume those that were interrupted."""
    fresh = []
    for experiment, folder in zip(experiments, folders, strict=True):
        if not ExperimentFolder(folder).holds_experiment:
            fresh.append((experiment, folder))
            continue
        before = load(folder)
        asked = {name: before.experiment.get(name) for name in ("name", "space", "num_samples", "seeds")}
        if asked != {name: value for name, value in experiment.to_json().items() if name in asked}:
            raise FolderError(f"{folder} holds another comparison's search; choose another output folder")
        if before.experiment["state"] != "finished":
            _check_whole(resume(folder, trainable=experiment.trainable, **options), folder.parent)
    if fresh:
        run_all([one for one, _ in fresh], folders=[folder for _, folder in fresh], **options)
    return [load(folder) for folder in folders]

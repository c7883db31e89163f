"""Population-based training (PBT), synchronous and resumable (Jaderberg et al., 2017).

All members train for a tenth of their steps and save their states. Then each member of the worst quarter copies the
state and configuration of a member of the best quarter (exploit). It changes some hyperparameters of the copy by a
fifth, up or down, or draws them from the space (explore). Hyperparameters therefore follow a learned schedule, and the
history of a member is that of the states from which it descends.

Members wait for each other at the end of a generation. Decisions therefore depend on the search seed and on the
members' results only, and not on the order of arrival. They are appended to ``population.jsonl`` before any further
training, and a resumed search continues from this file. A member that diverges or fails leaves the population.

Source: Jaderberg et al., Population Based Training of Neural Networks, arXiv 1711.09846, 2017.
"""

import math
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tune_hpc.analysis.loading import load
from tune_hpc.analysis.results import Results
from tune_hpc.learning.config import complete
from tune_hpc.search.experiment import ENDED, TRAIN, Experiment
from tune_hpc.search.searchers.searcher import Searcher, merged_config_keys, trial_specs
from tune_hpc.search.space.space import Space
from tune_hpc.search.trial_spec import RankedMetric, TrialOutcome, TrialSpec
from tune_hpc.storage.experiment_folder import ExperimentFolder

NUM_GENERATIONS = 10
#: Fraction of the members that are copied, and of those that copy.
QUANTILE = 0.25
#: Factors by which a number may change.
FACTORS = (0.8, 1.2)
#: Probability of a new draw instead of a change.
RESAMPLE_PROBABILITY = 0.25


class PopulationBasedTraining(Searcher):
    """Searcher that suggests for each member the next generation of its training.

    Args:
        experiment: The experiment; its configurations are the first generation.
        folder: Its folder.
        metric: Metric that ranks the members.
        before: Results of the search so far.
    """

    def __init__(
        self, experiment: Experiment, folder: ExperimentFolder, metric: RankedMetric, before: Results | None = None
    ) -> None:
        self.experiment = experiment
        self.folder = folder
        self.metric = metric
        trials = trial_specs(experiment, experiment.configs())
        self.config_keys = merged_config_keys(trials)
        self._configs: dict[str, Mapping[str, Any]] = {trial.trial_id: trial.config for trial in trials}
        self._generation = 0
        self._ended: set[str] = set()
        self._running: set[str] = set()
        # A member must train after each exploit, so that there is no generation without a step.
        fewest_steps = min(map(experiment.num_steps, self._configs.values()), default=NUM_GENERATIONS)
        self._num_generations = max(1, min(NUM_GENERATIONS, fewest_steps))
        steps = self._restore(before) if before is not None else {}
        self._due = [name for name in self._active() if not self._has_paused(name, steps.get(name, 0))]

    def _restore(self, before: Results) -> dict[str, float]:
        """Restore the decisions of an earlier run; return the last step of each member."""
        generations = self.folder.read_lines(self.folder.population, "generation", first=1, may_be_absent=True)
        if generations:
            self._generation = generations[-1]["generation"]
            self._configs |= {name: member["config"] for name, member in generations[-1]["members"].items()}
        trials = before.trials
        self._ended = set(trials.loc[trials["status"].isin(ENDED), "trial_id"])
        return dict(zip(trials["trial_id"], trials["steps_run"], strict=True))

    def _has_paused(self, name: str, steps: float) -> bool:
        max_step = self._max_step(name)
        return max_step is not None and steps >= max_step

    @property
    def has_pending(self) -> bool:
        """Return whether members train for the current generation."""
        return bool(self._running)

    def suggest(self) -> list[TrialSpec]:
        """Return the next member to train; none while the others have to finish a generation, and at the end."""
        if not self._due and not self._running:
            self._start_generation()
        if not self._due:
            return []
        name = self._due.pop(0)
        self._running.add(name)
        return [TrialSpec(self.experiment.name, name, self._configs[name], self._max_step(name), self._generation)]

    def on_trial_complete(self, trial_id: str, outcome: TrialOutcome) -> None:
        """Record that a member finished a generation, with the status ``running``, or ended."""
        self._running.discard(trial_id)
        if outcome.status in ENDED:
            self._ended.add(trial_id)

    def _active(self) -> list[str]:
        return [name for name in self._configs if name not in self._ended]

    def _max_step(self, name: str) -> int | None:
        """Return the step at which a member finishes the generation; ``None`` for the last generation."""
        steps = self.experiment.num_steps(self._configs[name])
        end = round(steps * (self._generation + 1) / self._num_generations)
        return None if self._generation + 1 >= self._num_generations else max(end, 1)

    def _start_generation(self) -> None:
        """Exploit and explore, and start the next generation."""
        active = self._active()
        if not active or self._generation + 1 >= self._num_generations:
            return
        values = self._values(active)
        generator = np.random.default_rng([self.experiment.search_seed, self._generation])
        members: dict[str, dict[str, Any]] = {
            name: {"config": self._configs[name], "copied_from": None, "value": values.get(name)} for name in active
        }
        for name, source in self._pairs(values, generator):
            self._copy_state(source, name)
            config = self._explore(self._configs[source], generator)
            if "seed" in config:
                config["seed"] = self._configs[name]["seed"]
            members[name] |= {"config": config, "copied_from": source}
        self._generation += 1
        self.folder.append_line(self.folder.population, {"generation": self._generation, "members": members})
        self._configs |= {name: member["config"] for name, member in members.items()}
        self._due = active

    def _explore(self, config: Mapping[str, Any], generator: np.random.Generator) -> dict[str, Any]:
        changed = explore(config, self.experiment.space, self.experiment.changeable_parameters, generator)
        return complete(changed) if self.experiment.trainable == TRAIN else changed

    def _values(self, active: Sequence[str]) -> dict[str, float]:
        """Return the metric value of each member that has a saved state."""
        history = load(self.folder.path).history
        if self.metric.column not in history:
            return {}
        reported = history.groupby("trial_id", observed=True)[self.metric.column]
        values = {str(name): self.metric.value(column.to_numpy(float)) for name, column in reported}
        return {
            name: values[name]
            for name in active
            if math.isfinite(values.get(name, math.nan)) and self.folder.storage.download(self.folder.checkpoint(name))
        }

    def _pairs(self, values: Mapping[str, float], generator: np.random.Generator) -> list[tuple[str, str]]:
        """Return pairs of a bad member and the good member that it copies."""
        sign = 1 if self.metric.mode == "min" else -1
        ranked = sorted(values, key=lambda name: (sign * values[name], name))
        size = max(1, int(len(ranked) * QUANTILE)) if len(ranked) > 1 else 0
        best, worst = ranked[:size], ranked[len(ranked) - size :]
        return [(name, best[generator.integers(size)]) for name in worst if values[name] != values[best[0]]]

    def _copy_state(self, source: str, target: str) -> None:
        self.folder.check_attempt()
        file = self.folder.checkpoint(source)
        self.folder.storage.download(file)
        self.folder.storage.write_atomic(self.folder.checkpoint(target), lambda path: shutil.copyfile(file, path))
        # The member has the history of its source from now on, and with it the best state in this history.
        for step in self.folder.retained_steps(source):
            retained = self.folder.retained_checkpoint(source, step)
            self.folder.storage.download(retained)
            copy = self.folder.retained_checkpoint(target, step)
            self.folder.storage.write_atomic(copy, lambda path, retained=retained: shutil.copyfile(retained, path))  # type: ignore[misc]


def explore(
    config: Mapping[str, Any], space: Space, names: Sequence[str], generator: np.random.Generator
) -> dict[str, Any]:
    """Return a configuration with some parameters changed within their domains.

    With a probability of ``RESAMPLE_PROBABILITY`` a parameter is drawn from its domain. Otherwise a number of a range
    is multiplied by one of ``FACTORS``, a number of a list becomes its neighbour, and a word stays.

    Args:
        config: The configuration.
        space: Space with the domains.
        names: Parameters that may change.
        generator: Random numbers: three for each parameter, whatever its change.
    """
    changed = dict(config)
    for name in names:
        domain = space.domain(name, config)
        chance, fraction, direction = generator.random(3)
        is_up = bool(direction < 0.5)
        if domain is None or domain.is_constant:
            continue
        if chance < RESAMPLE_PROBABILITY:
            changed[name] = domain.ppf(fraction)
        elif domain.kind == "choice":
            changed[name] = _neighbour(domain.values, config[name], is_up)
        else:
            changed[name] = domain.clip(config[name] * FACTORS[is_up])
    return changed


def _neighbour(values: Sequence[Any], value: Any, is_up: bool) -> Any:
    """Return the next larger or smaller value of a list of numbers; of other lists, the value itself."""
    if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in values):
        return value
    ordered = sorted(values)
    return ordered[min(max(ordered.index(value) + (1 if is_up else -1), 0), len(ordered) - 1)]

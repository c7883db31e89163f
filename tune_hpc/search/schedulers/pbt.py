"""Population-based training: trials that copy better ones, generation by generation.

All members train for a tenth of their steps and save their states. Then each of the worst quarter takes the state and
the configuration of one of the best quarter, and some of the hyperparameters it changes: by a fifth up or down, or to a
new draw from the space. So hyperparameters follow a schedule that nobody wrote, and a member's history is that of the
states it descends from.

Everybody waits for everybody at the end of a generation, so that what is decided depends on the search seed and on what
the members reached, and not on which of them was first. Decisions are written to ``population.jsonl`` before anybody
trains on, and a search that was interrupted goes on from there. A member that diverges or fails ends there.

Source: Jaderberg et al., Population Based Training of Neural Networks, 2017.
"""

import math
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tune_hpc.analysis.results import Results, load
from tune_hpc.learning.config import complete
from tune_hpc.search.experiment import ENDED, TRAIN, Experiment
from tune_hpc.search.reporter import MonitoredMetric
from tune_hpc.search.schedulers.exploration import changeable, explore
from tune_hpc.search.searchers.searcher import Searcher, samples_of
from tune_hpc.storage.experiment_folder import ExperimentFolder, write_atomic
from tune_hpc.storage.filesystem import pull
from tune_hpc.storage.jsonl import append_line, read_lines

NUM_GENERATIONS = 10
#: So many of all are the best, and so many the worst.
QUANTILE = 0.25


class PopulationBasedTraining(Searcher):
    """Proposes what its members do next: to train until the end of a generation.

    Args:
        experiment: What is searched; its configurations are the first generation.
        home: Its folder.
        watched: What members are compared by.
        before: What there is of the search already.
    """

    def __init__(
        self, experiment: Experiment, home: ExperimentFolder, watched: MonitoredMetric, before: Results | None = None
    ) -> None:
        self.experiment = experiment
        self.home = home
        self.watched = watched
        samples = samples_of(experiment, experiment.configs())
        self.config_keys = list(dict.fromkeys(key for sample in samples for key in sample["config"]))
        self._configs: dict[str, dict[str, Any]] = {sample["trial_id"]: sample["config"] for sample in samples}
        self._data = {config.get("data") for config in self._configs.values()}
        self._generation = 0
        self._gone: set[str] = set()
        self._open: set[str] = set()
        self._reached: dict[str, float] = {}
        if before is not None:
            self._go_on(before)
        self._waiting = [name for name in self._alive() if self._has_to_train(name)]

    def _go_on(self, before: Results) -> None:
        """Take in what was decided and reached before this run."""
        generations = read_lines(self.home.population, "generation", first=1, may_be_absent=True)
        if generations:
            self._generation = generations[-1]["generation"]
            self._configs |= {name: one["config"] for name, one in generations[-1]["members"].items()}
        trials = before.trials
        self._gone = set(trials.loc[trials["status"].isin(ENDED), "trial_id"])
        self._reached = dict(zip(trials["trial_id"], trials["steps_run"], strict=True))

    def _has_to_train(self, name: str) -> bool:
        until = self._until(name)
        return until is None or self._reached.get(name, 0) < until

    def possible_data(self) -> list[str]:
        """Return the data sets that any member may ask for."""
        return [str(name) for name in self._data]

    @property
    def is_waiting(self) -> bool:
        """Whether there is nothing to do now, but will be when the others have come as far."""
        return bool(self._open)

    def propose(self) -> list[dict[str, Any]]:
        """Return what one member is to do; nothing while others have to come as far, and when all is done."""
        if not self._waiting and not self._open:
            self._next_generation()
        if not self._waiting:
            return []
        name = self._waiting.pop(0)
        self._open.add(name)
        sample = {"experiment": self.experiment.name, "trial_id": name, "config": self._configs[name]}
        return [sample | {"stage": self._generation, "until": self._until(name)}]

    def ended(self, trial_id: str, status: str, value: float | None, steps: int) -> None:
        """Say that a member came to the end of a generation, its status ``running``, or to its own end."""
        self._open.discard(trial_id)
        if status in ENDED:
            self._gone.add(trial_id)

    def _alive(self) -> list[str]:
        return [name for name in self._configs if name not in self._gone]

    def _until(self, name: str) -> int | None:
        """Return the step at which a member is to pause in this generation; ``None`` in the last one."""
        steps = self._configs[name].get("steps", self.experiment.max_steps)
        end = round(steps * (self._generation + 1) / NUM_GENERATIONS)
        return None if self._generation + 1 >= NUM_GENERATIONS else max(end, 1)

    def _next_generation(self) -> None:
        """Decide what each member is in the next generation, and let it be that."""
        alive = self._alive()
        if not alive or self._generation + 1 >= NUM_GENERATIONS:
            return
        values = self._values(alive)
        generator = np.random.default_rng([self.experiment.search_seed, self._generation])
        members: dict[str, dict[str, Any]] = {
            name: {"config": self._configs[name], "copied_from": None, "value": values.get(name)} for name in alive
        }
        for name, source in self._pairs(values, generator):
            _copy_state(self.home, source, name)
            config = self._changed(self._configs[source], generator)
            if "seed" in config:
                config["seed"] = self._configs[name]["seed"]
            members[name] |= {"config": config, "copied_from": source}
        self._generation += 1
        append_line(self.home, self.home.population, {"generation": self._generation, "members": members})
        self._configs |= {name: one["config"] for name, one in members.items()}
        self._waiting = alive

    def _changed(self, config: Mapping[str, Any], generator: np.random.Generator) -> dict[str, Any]:
        is_ours = self.experiment.trainable == TRAIN
        changed = explore(config, self.experiment.space, changeable(self.experiment.space, is_ours), generator)
        return complete(changed) if is_ours else changed

    def _values(self, alive: Sequence[str]) -> dict[str, float]:
        """Return each member's latest value; those that left no state are not in it."""
        history = load(self.home.path).history
        if self.watched.column not in history:
            return {}
        taken = history.dropna(subset=[self.watched.column])
        values = {}
        for name in alive:
            own = taken.loc[taken["trial_id"] == name, self.watched.column]
            if len(own) and math.isfinite(own.iloc[-1]) and pull(self.home.checkpoint(name)):
                values[name] = float(own.iloc[-1])
        return values

    def _pairs(self, values: Mapping[str, float], generator: np.random.Generator) -> list[tuple[str, str]]:
        """Return who copies whom."""
        sign = 1 if self.watched.mode == "min" else -1
        ranked = sorted(values, key=lambda name: (sign * values[name], name))
        num = max(1, int(len(ranked) * QUANTILE)) if len(ranked) > 1 else 0
        best, worst = ranked[:num], ranked[len(ranked) - num :]
        return [(name, best[generator.integers(num)]) for name in worst if values[name] != values[best[0]]]


def _copy_state(home: ExperimentFolder, source: str, name: str) -> None:
    home.check_attempt()
    pull(home.checkpoint(source))
    write_atomic(home.checkpoint(name), lambda path: shutil.copyfile(home.checkpoint(source), path))

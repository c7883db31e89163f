"""Search without Ray: trials whose metric ``height`` grows by their rate in every step."""

import json

import numpy as np

from tests.search import trainables
from tune_hpc import Experiment, load
from tune_hpc.search.trial_spec import RankedMetric, TrialOutcome
from tune_hpc.storage.checksum import load_json
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.trial_file import TrialFileWriter


def climbers(scheduler, space, num_samples, **changes):
    settings = {"metric": "height", "mode": "max", "seeds": (), "searcher": "random", "num_samples": num_samples}
    return Experiment("climbers", space, trainables.climbs, scheduler=scheduler, **(settings | changes))


def new_folder(path):
    folder = ExperimentFolder(path)
    folder.trials.mkdir(parents=True)
    return folder


class SearcherSimulation:
    """Training of the trials that a searcher suggests; a checkpoint holds the heights of all steps.

    Args:
        folder: Experiment folder.
        experiment: The experiment.
        make_searcher: Called with experiment, folder and metric; returns the searcher.
        bad: Status of trials that end badly in their first stage.
    """

    def __init__(self, folder, experiment, make_searcher, bad=None):
        self.folder, self.experiment, self.bad = folder, experiment, bad or {}
        folder.write(experiment.to_json() | {"config_keys": ["rate", "steps", "seed"]})
        self.searcher = make_searcher(experiment, folder, RankedMetric("height", experiment.mode))
        self.searcher.record_stopped = self.record_stopped
        self.trained = []

    def record_stopped(self, trial, steps):
        assert self.folder.read_row(trial.trial_id)["steps_run"] == steps
        self.folder.update_status(trial.trial_id, {"status": "stopped"})
        self.folder.checkpoint(trial.trial_id).unlink()

    def train(self, trial, status=None):
        checkpoint = self.folder.checkpoint(trial.trial_id)
        heights = json.loads(checkpoint.read_text()) if checkpoint.is_file() else []
        status = status or self.bad.get(trial.trial_id) or ("running" if trial.max_step else "finished")
        begin = len(heights)
        end = begin if status in ("diverged", "failed") else trial.max_step or trial.config["steps"]
        rate = trial.config["rate"] + trial.config.get("seed", 0) / 100
        for _ in range(begin, end):
            heights.append(sum(heights[-1:]) + rate)
        self.trained += [(trial.trial_id, trial.stage, step) for step in range(begin, end)]
        record = TrialFileWriter({})
        if heights:
            record.add(np.arange(1, end + 1), {"height": heights})
        value = heights[-1] if heights else None
        row = {"experiment": "climbers", "trial_id": trial.trial_id, "status": status, "steps_run": end}
        self.folder.write_trial(trial.trial_id, {**row, **trial.config, "height": value}, record.history())
        checkpoint.write_text(json.dumps(heights))
        if status != "running":
            checkpoint.unlink()
        self.searcher.on_trial_complete(trial.trial_id, TrialOutcome(status, value, end))

    def run(self, num_slots=1, generator=None, max_runs=10_000):
        """Train ``num_slots`` trials at a time; ``generator`` draws the one that pauses or ends next."""
        running = []
        for _ in range(max_runs):
            while len(running) < num_slots and (trials := self.searcher.suggest()):
                running += trials
            if not running:
                assert not self.searcher.has_pending
                break
            self.train(running.pop(generator.integers(len(running)) if generator is not None else 0))
        return self

    @property
    def trials(self):
        return load(self.folder.path).trials


def read_lines(file):
    return [load_json(line) for line in file.read_text().splitlines()]

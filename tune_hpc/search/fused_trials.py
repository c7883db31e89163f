"""Groups of trials that train as one fused program.

A small model in a fused program costs a fraction of a separate trial (docs/performance.md). The trials share the
loading of their images, and one call from Python serves all of them. A large model occupies a core by itself, so that
fusion would only delay its results.
"""

import itertools
import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from tune_hpc.errors import FolderError, InvalidExperimentError
from tune_hpc.learning.fusion import fusion_key, max_fused_trials, stream_key
from tune_hpc.search.experiment import TRAIN
from tune_hpc.search.trial_spec import TrialGroup, TrialSpec
from tune_hpc.storage.checksum import dump_json, load_json
from tune_hpc.storage.experiment_folder import ExperimentFolder

#: Name of ``groups.json`` in folders of earlier releases.
_OLD_GROUPS = "bundles.json"

_log = logging.getLogger(__name__)


def check_fuse(fuse: str | int) -> str | int:
    """Return the option ``fuse``: ``auto``, ``off`` or the maximum number of trials of a group.

    Raises:
        InvalidExperimentError: The value is none of these.
    """
    if isinstance(fuse, str) and fuse.isdecimal() and len(fuse) < 20:
        fuse = int(fuse)
    if fuse in ("auto", "off") or (isinstance(fuse, int) and not isinstance(fuse, bool) and fuse >= 1):
        return fuse
    raise InvalidExperimentError(
        f"fuse must be auto, off, or the maximum number of trials of one program, at least 1; got {fuse!r:.100}"
    )


def plan_groups(
    trials: Sequence[TrialSpec],
    trainables: Mapping[str, str | Callable[..., Any]],
    fuse: str | int,
    num_slots: int,
    on_gpu: bool,
    first: int = 0,
) -> list[TrialGroup]:
    """Partition trials into groups.

    The trials of a group belong to one experiment and agree in all that a program shares. Trials with the same seed,
    which see the same batches, are in one group where possible. There are at least as many groups as slots, so that no
    core is idle.

    Args:
        trials: Trials of one or several experiments.
        trainables: Trainable of each experiment.
        fuse: See ``check_fuse``.
        num_slots: Number of Ray trials that run at once.
        on_gpu: Whether trials run on GPUs.
        first: Number of the first group.

    Returns:
        Groups in the order of their first trials.
    """
    groups: list[list[TrialSpec]] = []
    fusable: dict[tuple[str, str], list[TrialSpec]] = {}
    for trial in trials:
        if trainables[trial.experiment] == TRAIN and "workers" not in trial.config and fuse != "off":
            fusable.setdefault((trial.experiment, fusion_key(trial.config)), []).append(trial)
        else:
            groups.append([trial])
    for alike in fusable.values():
        limit = fuse if isinstance(fuse, int) else max_fused_trials(alike[0].config, on_gpu)
        num_groups = max(math.ceil(len(alike) / limit), math.ceil(num_slots * len(alike) / len(trials)))
        by_stream = sorted(alike, key=lambda trial: stream_key(trial.config))
        groups += _even_parts(by_stream, min(num_groups, len(alike)))
    positions = {(trial.experiment, trial.trial_id): position for position, trial in enumerate(trials)}

    def position(trial: TrialSpec) -> int:
        return positions[trial.experiment, trial.trial_id]

    groups = sorted((sorted(group, key=position) for group in groups), key=lambda group: position(group[0]))
    return [
        TrialGroup.single(group[0]) if len(group) == 1 else TrialGroup(f"b{number:05d}", tuple(group))
        for number, group in enumerate(groups, first)
    ]


def unfinished_trials(group: TrialGroup, folder: ExperimentFolder) -> list[TrialSpec]:
    """Return the trials of a group whose files do not record an end, in order."""
    rows = [folder.read_row(trial.trial_id) for trial in group.trials]
    return [trial for trial, row in zip(group.trials, rows, strict=True) if row is None or row["status"] == "running"]


def running_trials(group: TrialGroup, folder: ExperimentFolder) -> list[TrialSpec]:
    """Return the trials of a group that have started and not ended; at most one of a sequential group."""
    unfinished = unfinished_trials(group, folder)
    return unfinished[:1] if group.is_sequential else unfinished


def write_groups(folder: ExperimentFolder, groups: Sequence[TrialGroup]) -> None:
    """Add the fused groups to ``groups.json``: a resumed search continues each as the same program."""
    folder.check_attempt()
    fused = {group.group_id: [trial.trial_id for trial in group.trials] for group in groups if len(group.trials) > 1}
    folder.storage.write_atomic(folder.groups, dump_json(_read_groups(folder) | fused))


def interrupted_groups(folder: ExperimentFolder, trials: Sequence[TrialSpec]) -> tuple[list[TrialGroup], int]:
    """Return the fused groups of an earlier run that left a checkpoint, and the number of the next new group.

    Args:
        folder: The experiment folder.
        trials: The trials to run; the checkpoint of a group is deleted if one of its trials has ended.
    """
    due = {trial.trial_id: trial for trial in trials}
    known = _read_groups(folder)
    found = []
    for group_id, trial_ids in known.items():
        if not folder.storage.exists(folder.checkpoint(group_id)):
            continue
        if all(trial_id in due for trial_id in trial_ids):
            found.append(TrialGroup(group_id, tuple(due[trial_id] for trial_id in trial_ids)))
        else:
            folder.delete_checkpoint(group_id)
    return found, max((int(group_id[1:]) + 1 for group_id in known), default=0)


def _read_groups(folder: ExperimentFolder) -> dict[str, list[str]]:
    for path in (folder.groups, folder.groups.with_name(_OLD_GROUPS)):
        try:
            return dict(load_json(folder.storage.read_bytes(path)))
        except FileNotFoundError:
            continue
        except (FolderError, ValueError, TypeError) as error:
            raise FolderError(
                f"{path} cannot be read: {error}; remove it, and interrupted programs restart from step 0"
            ) from error
    return {}


def log_unfused_trials(
    trainables: Mapping[str, str | Callable[..., Any]], with_scheduler: Collection[str], fuse: str | int
) -> None:
    """Log once for each experiment why its trials are not fused; ``with_scheduler`` names those with a scheduler."""
    for experiment, trainable in trainables.items():
        reason = ""
        if trainable != TRAIN:
            if fuse != "auto":
                reason = "only the built-in trainable trains several trials as one program"
        elif experiment in with_scheduler:
            reason = "the scheduler decides on each of them"
        if reason and fuse != "off":
            _log.info("%s: trials run separately, because %s", experiment, reason)


def _even_parts(trials: Sequence[TrialSpec], num_parts: int) -> list[list[TrialSpec]]:
    bounds = [number * len(trials) // num_parts for number in range(num_parts + 1)]
    return [list(trials[start:end]) for start, end in itertools.pairwise(bounds)]

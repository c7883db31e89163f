"""Which trials of an experiment train as one program: a bundle, carried by one trial of Ray's.

Fused, a small model's trial costs a fraction of what it costs alone (docs/performance.md): members share the reading of
their images, and one call from Python serves all of them. Large models keep a core busy by themselves; there a bundle
would gain nothing and hold results back.
"""

import itertools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tune_hpc.errors import FolderError, InvalidExperimentError
from tune_hpc.learning.fusion import fusion_key, max_fused_trials, stream_key
from tune_hpc.search.experiment import TRAIN
from tune_hpc.storage.experiment_folder import ExperimentFolder, write_atomic
from tune_hpc.storage.filesystem import delete, pull
from tune_hpc.storage.trial_file import read_row

Sample = Mapping[str, Any]

_log = logging.getLogger(__name__)


def check_fuse(fuse: str | int) -> str | int:
    """Return a request for fusing: ``auto``, ``off`` or the most members of a bundle.

    Raises:
        InvalidExperimentError: it is none of these.
    """
    if isinstance(fuse, str) and fuse.isdigit():
        fuse = int(fuse)
    if fuse in ("auto", "off") or (isinstance(fuse, int) and not isinstance(fuse, bool) and fuse >= 1):
        return fuse
    raise InvalidExperimentError(f"fuse must be auto, off, or the most trials of one program, at least 1; got {fuse!r}")


def plan_bundles(
    samples: Sequence[Sample],
    trainables: Mapping[str, str | Callable[..., Any]],
    fuse: str | int,
    num_slots: int,
    on_gpu: bool,
    first: int = 0,
) -> list[dict[str, Any]]:
    """Sort trials into bundles.

    Members are of one experiment and alike in what a program shares; where there is a choice, those of one seed come
    together, for they see the same batches. There are at least as many bundles as slots, so that no core is idle.

    Args:
        samples: ``experiment``, ``trial_id`` and ``config`` of each trial.
        trainables: What each experiment runs.
        fuse: See ``check_fuse``.
        num_slots: How many trials of Ray's run at once.
        on_gpu: Whether they run on GPUs.
        first: The number of the first bundle.

    Returns:
        ``bundle_id`` and ``members`` (samples), in the order of each bundle's first member. A trial alone is a bundle
        of its own name.
    """
    alone: list[list[Sample]] = []
    groups: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        is_fusable = trainables[sample["experiment"]] == TRAIN and "workers" not in sample["config"]
        if is_fusable and fuse != "off":
            groups.setdefault((sample["experiment"], fusion_key(sample["config"])), []).append(sample)
        else:
            alone.append([sample])
    bundles = alone
    for group in groups.values():
        limit = fuse if isinstance(fuse, int) else max_fused_trials(group[0]["config"], on_gpu)
        num_bundles = max(_ceil(len(group), limit), _ceil(num_slots * len(group), len(samples)))
        by_stream = sorted(group, key=lambda sample: stream_key(sample["config"]))
        bundles += _even_parts(by_stream, min(num_bundles, len(group)))
    places = {(sample["experiment"], sample["trial_id"]): place for place, sample in enumerate(samples)}
    bundles = [
        sorted(bundle, key=lambda sample: places[sample["experiment"], sample["trial_id"]]) for bundle in bundles
    ]
    bundles.sort(key=lambda bundle: places[bundle[0]["experiment"], bundle[0]["trial_id"]])
    return [
        {"bundle_id": _name(bundle[0]) if len(bundle) == 1 else f"b{number:05d}", "members": bundle}
        for number, bundle in enumerate(bundles, first)
    ]


def _name(sample: Sample) -> str:
    """Return a name that no other trial of Ray's has: one that pauses is a new trial to Ray when it goes on."""
    return f"{sample['trial_id']}.{sample['stage']}" if "stage" in sample else str(sample["trial_id"])


def unfinished_trials(bundle: Mapping[str, Any], home: ExperimentFolder) -> list[Sample]:
    """Return the trials of a bundle that have not listed themselves as ended, in order."""
    rows = [read_row(home.part(sample["trial_id"])) for sample in bundle["members"]]
    return [
        sample for sample, row in zip(bundle["members"], rows, strict=True) if row is None or row["status"] == "running"
    ]


def running_trials(bundle: Mapping[str, Any], home: ExperimentFolder) -> list[Sample]:
    """Return the trials of a bundle that have begun and not ended: of several in turn, one."""
    waiting = unfinished_trials(bundle, home)
    return waiting[:1] if bundle.get("in_turn") else waiting


def write_bundles(home: ExperimentFolder, bundles: Sequence[Mapping[str, Any]]) -> None:
    """Note which trials train as one program, for one that is interrupted goes on as that program."""
    home.check_attempt()
    members = {one["bundle_id"]: [sample["trial_id"] for sample in one["members"]] for one in bundles}
    known = _read_bundles(home) | {name: own for name, own in members.items() if len(own) > 1}
    text = json.dumps(known) + "\n"
    write_atomic(home.bundles, lambda path: path.write_text(text, encoding="utf-8"))


def interrupted_bundles(home: ExperimentFolder, samples: Sequence[Sample]) -> tuple[list[dict[str, Any]], int]:
    """Return the programs of an earlier run that left a checkpoint, and the number of the next new one.

    Args:
        home: The experiment's folder.
        samples: The trials that are to run; a program of which some have ended is not taken up again.
    """
    waiting = {sample["trial_id"]: sample for sample in samples}
    known = _read_bundles(home)
    found = []
    for name, members in known.items():
        if pull(home.checkpoint(name)):
            if all(one in waiting for one in members):
                found.append({"bundle_id": name, "members": [waiting[one] for one in members]})
            else:
                delete(home.checkpoint(name))
    return found, max((int(name[1:]) + 1 for name in known), default=0)


def _read_bundles(home: ExperimentFolder) -> dict[str, list[str]]:
    if not pull(home.bundles):
        return {}
    try:
        return dict(json.loads(home.bundles.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise FolderError(
            f"{home.bundles} cannot be read: {error}; remove it, and programs that were interrupted begin afresh"
        ) from error


def log_unfused_trials(trainables: Mapping[str, str | Callable[..., Any]], fuse: str | int) -> None:
    """Tell the user, once for each experiment, that the trials of a trainable of their own are not fused."""
    for experiment, trainable in trainables.items():
        if trainable != TRAIN and fuse != "off":
            _log.info("%s: each trial runs by itself, for only tune_hpc's own models train as one program", experiment)


def log_scheduler_unfused(experiments: Sequence[str], fuse: str | int) -> None:
    """Tell the user, once for each experiment, that trials of which a scheduler decides on each are not fused."""
    for experiment in experiments:
        if fuse != "off":
            _log.info("%s: each trial runs by itself, for the scheduler decides on each of them", experiment)


def _ceil(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)


def _even_parts(samples: Sequence[Sample], num_parts: int) -> list[list[Sample]]:
    bounds = [number * len(samples) // num_parts for number in range(num_parts + 1)]
    return [list(samples[start:end]) for start, end in itertools.pairwise(bounds)]

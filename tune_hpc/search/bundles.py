"""Which trials of an experiment train as one program: a bundle, carried by one trial of Ray's.

Fused, a small model's trial costs a fraction of what it costs alone (docs/performance.md): members share the reading of
their images, and one call from Python serves all of them. Large models keep a core busy by themselves; there a bundle
would gain nothing and hold results back.
"""

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tune_hpc.errors import InvalidExperimentError
from tune_hpc.learning.fusion import fusion_key, members_that_pay, stream_key
from tune_hpc.search.experiment import TRAIN

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

    Returns:
        ``bundle_id`` and ``members`` (samples), in the order of each bundle's first member. A trial alone is a bundle
        of its own name.
    """
    alone: list[list[Sample]] = []
    groups: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        if trainables[sample["experiment"]] == TRAIN and fuse != "off":
            groups.setdefault((sample["experiment"], fusion_key(sample["config"])), []).append(sample)
        else:
            alone.append([sample])
    bundles = alone
    for group in groups.values():
        limit = fuse if isinstance(fuse, int) else members_that_pay(group[0]["config"], on_gpu)
        num_bundles = max(_ceil(len(group), limit), _ceil(num_slots * len(group), len(samples)))
        by_stream = sorted(group, key=lambda sample: stream_key(sample["config"]))
        bundles += _even_parts(by_stream, min(num_bundles, len(group)))
    places = {(sample["experiment"], sample["trial_id"]): place for place, sample in enumerate(samples)}
    bundles = [
        sorted(bundle, key=lambda sample: places[sample["experiment"], sample["trial_id"]]) for bundle in bundles
    ]
    bundles.sort(key=lambda bundle: places[bundle[0]["experiment"], bundle[0]["trial_id"]])
    return [
        {"bundle_id": bundle[0]["trial_id"] if len(bundle) == 1 else f"b{number:05d}", "members": bundle}
        for number, bundle in enumerate(bundles)
    ]


def say_what_runs_alone(trainables: Mapping[str, str | Callable[..., Any]], fuse: str | int) -> None:
    """Tell the user, once for each experiment, that the trials of a trainable of their own are not fused."""
    for experiment, trainable in trainables.items():
        if trainable != TRAIN and fuse != "off":
            _log.info("%s: each trial runs by itself, for only tune_hpc's own models train as one program", experiment)


def _ceil(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)


def _even_parts(samples: Sequence[Sample], num_parts: int) -> list[list[Sample]]:
    bounds = [number * len(samples) // num_parts for number in range(num_parts + 1)]
    return [list(samples[start:end]) for start, end in itertools.pairwise(bounds)]

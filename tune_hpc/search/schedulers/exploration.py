"""Changes of a configuration from one generation of a population to the next."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ray.tune.search.sample import Categorical, Domain

from tune_hpc.learning.config import TRIAL_KEYS
from tune_hpc.search.space.conditional import Conditional
from tune_hpc.search.space.domains import clip, ppf
from tune_hpc.search.space.space import Space

#: What a number may be multiplied by.
FACTORS = (0.8, 1.2)
RESAMPLE_PROBABILITY = 0.25

#: The keys of our own trainable that may change while a trial runs: its network and its optimizer's slots stay.
CHANGEABLE_KEYS = tuple(
    key.name for key in TRIAL_KEYS.values() if key.kind is float and key.name not in ("width", "initial_accumulator")
)


def changeable(space: Space, is_ours: bool) -> list[str]:
    """Return the parameters that may change while a trial runs: those that vary, and on which no others depend.

    Args:
        space: What may vary.
        is_ours: Whether our own trainable runs, which bears a change of ``CHANGEABLE_KEYS`` only.
    """
    controls = {other for value in space.values() if isinstance(value, Conditional) for other in value.controlled_by}
    fixed = {"seed", "steps", *controls}
    return [name for name in space.varying if name not in fixed and (name in CHANGEABLE_KEYS or not is_ours)]


def explore(
    config: Mapping[str, Any], space: Space, names: Sequence[str], generator: np.random.Generator
) -> dict[str, Any]:
    """Return a configuration with some parameters changed, each within its domain.

    A number becomes a fifth more or less, one of a list of numbers its neighbour; or else, one time in four, either is
    drawn anew. Words are only ever drawn anew.

    Args:
        config: What is changed.
        space: It has the domains.
        names: The parameters that may change.
        generator: Draws.
    """
    changed = dict(config)
    for name in names:
        place, domain = space.case(name, config)
        # A fixed number of draws, whatever comes of them.
        chance, fraction, direction = generator.random(3)
        if place is None or not isinstance(domain, Domain):
            continue
        if chance < RESAMPLE_PROBABILITY:
            changed[name] = ppf(domain, fraction)
        elif isinstance(domain, Categorical):
            changed[name] = _neighbour(domain.categories, config[name], direction < 0.5)
        else:
            changed[name] = clip(domain, config[name] * FACTORS[int(direction < 0.5)])
    return changed


def _neighbour(values: Sequence[Any], value: Any, is_up: bool) -> Any:
    if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in values):
        return value
    ordered = sorted(values)
    return ordered[min(max(ordered.index(value) + (1 if is_up else -1), 0), len(ordered) - 1)]

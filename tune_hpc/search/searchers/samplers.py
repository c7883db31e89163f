"""Configurations that are known before the first trial runs: grid, random, quasi-random.

Each is an endless or finite stream that depends on the space and the search seed alone, so a search has the same
configurations on any number of slots, and a longer search begins with those of a shorter one.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np
from ray.tune.search.sample import Domain

from tune_hpc.search.space.branches import Branch
from tune_hpc.search.space.domains import ppf
from tune_hpc.search.space.space import Space


def random_configs(space: Space, seed: int) -> Iterator[dict[str, Any]]:
    """Yield configurations drawn at random, without end."""
    generator = np.random.default_rng(seed)
    while True:
        yield space.sample(generator)


def quasi_random_configs(space: Space, seed: int) -> Iterator[dict[str, Any]]:
    """Yield configurations that fill the space evenly: a scrambled Sobol sequence.

    Where the space has conditions each of its branches has a sequence of its own, and they take turns; so 30
    configurations over three optimizers are ten evenly spread ones for each. The turns are such that few
    configurations over many branches, too, have each value about equally often. No configuration comes twice, and
    where there is a finite number of them the stream ends with the last one.

    Source: I. M. Sobol, USSR Comput. Math. Math. Phys. 7 (1967); A. B. Owen's scrambling, as scipy has it.
    """
    sequences = []
    for number, branch in _in_even_turns(list(space.branches()), seed):
        sequences.append(_fill(branch, seed, number))
        yield next(sequences[-1])
    while sequences:
        for sequence in list(sequences):
            config = next(sequence, None)
            if config is None:
                sequences.remove(sequence)
            else:
                yield config


def _in_even_turns(branches: Sequence[Branch], seed: int) -> Iterator[tuple[int, Branch]]:
    """Yield branches and their numbers: next always the one whose values were there least often."""
    decided = [
        [(name, repr(value)) for name, value in branch.parameters.items() if not isinstance(value, Domain)]
        for branch in branches
    ]
    waiting = np.random.default_rng([seed, len(branches)]).permutation(len(branches)).tolist()
    times: Counter[tuple[str, str]] = Counter()
    while waiting:
        number = min(waiting, key=lambda one: sum(times[value] for value in decided[one]))
        waiting.remove(number)
        times.update(decided[number])
        yield number, branches[number]


def _fill(branch: Branch, seed: int, number: int) -> Iterator[dict[str, Any]]:
    domains = list(branch.domains.values())
    if not domains:
        yield branch.with_values([])
        return
    # Imported where it is needed: it takes longer than all the rest of a small search's plan.
    from scipy.stats import qmc

    engine = qmc.Sobol(len(domains), scramble=True, rng=np.random.default_rng([seed, number]))
    seen = set()
    # Twice as many points each time: powers of two keep the sequence balanced.
    for power in count():
        for point in engine.random(max(1, 2 ** (power - 1))):
            values = [ppf(domain, value) for domain, value in zip(domains, point, strict=True)]
            told_apart = tuple((isinstance(value, bool), value) for value in values)
            if told_apart not in seen:
                seen.add(told_apart)
                yield branch.with_values(values)
            if len(seen) == branch.size:
                return

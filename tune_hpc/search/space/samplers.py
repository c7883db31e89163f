"""Random and quasi-random (Sobol) sampling of configurations; the grid is ``Space.grid``.

A sampler is a stream that depends only on the space and the search seed. A search therefore has the same configurations
on any number of slots, and a longer search starts with those of a shorter one.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np

from tune_hpc.search.space.conditional import Branch
from tune_hpc.search.space.parameter import identity
from tune_hpc.search.space.space import Space


def random_configs(space: Space, seed: int) -> Iterator[dict[str, Any]]:
    """Yield random configurations without end."""
    generator = np.random.default_rng(seed)
    while True:
        yield space.sample(generator)


def quasi_random_configs(space: Space, seed: int) -> Iterator[dict[str, Any]]:
    """Yield configurations that fill the space evenly (scrambled Sobol sequence).

    Each branch of a conditional space has its own sequence, and the branches alternate: 30 configurations over three
    optimizers are ten evenly spread ones for each. The order of the branches balances the frequencies of all values
    even for few configurations over many branches. No configuration repeats; a finite space is exhausted.

    Source: I. M. Sobol, USSR Comput. Math. Math. Phys. 7 (1967), with Owen's scrambling as in ``scipy.stats.qmc``.
    """
    sequences = []
    for number, branch in _in_balanced_order(list(space.branches()), seed):
        sequences.append(_sobol_configs(branch, seed, number))
        yield next(sequences[-1])
    while sequences:
        for sequence in list(sequences):
            config = next(sequence, None)
            if config is None:
                sequences.remove(sequence)
            else:
                yield config


def _in_balanced_order(branches: Sequence[Branch], seed: int) -> Iterator[tuple[int, Branch]]:
    """Yield branches with their numbers; the next one is always the one with the least frequent constants."""
    constants = [
        [(name, repr(domain.values[0])) for name, domain in branch.parameters.items() if domain.is_constant]
        for branch in branches
    ]
    remaining = np.random.default_rng([seed, len(branches)]).permutation(len(branches)).tolist()
    counts: Counter[tuple[str, str]] = Counter()
    while remaining:
        number = min(remaining, key=lambda candidate: sum(counts[value] for value in constants[candidate]))
        remaining.remove(number)
        counts.update(constants[number])
        yield number, branches[number]


def _sobol_configs(branch: Branch, seed: int, number: int) -> Iterator[dict[str, Any]]:
    domains = list(branch.varying.values())
    if not domains:
        yield branch.config([])
        return
    # A lazy import: it takes longer than the rest of the plan of a small search.
    from scipy.stats import qmc

    engine = qmc.Sobol(len(domains), scramble=True, rng=np.random.default_rng([seed, number]))
    seen = set()
    # Batches of powers of two keep the sequence balanced.
    for power in count():
        for point in engine.random(max(1, 2 ** (power - 1))):
            values = [domain.ppf(fraction) for domain, fraction in zip(domains, point, strict=True)]
            key = tuple(map(identity, values))
            if key not in seen:
                seen.add(key)
                yield branch.config(values)
            if len(seen) == branch.size:
                return

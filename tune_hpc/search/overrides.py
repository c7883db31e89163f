"""An experiment changed as a user asks, be it by flags or in a request: one set of rules for both."""

from collections.abc import Mapping
from typing import Any

from tune_hpc.errors import InvalidExperimentError
from tune_hpc.search.experiment import Experiment


def apply_overrides(
    experiment: Experiment,
    values: Mapping[str, Any],
    *,
    quick: bool = False,
    searcher: str | None = None,
    num_samples: int | None = None,
    scheduler: str | None = None,
    seeds: int | None = None,
    search_seed: int = 0,
    metric: str | None = None,
    mode: str | None = None,
    is_ranked: bool = True,
) -> Experiment:
    """Return an experiment with what was asked for in place of its own.

    Args:
        experiment: What to begin with.
        values: Parameters of its space that change, or more of them.
        quick: At a size for a first look.
        searcher: Another searcher; with ``num_samples`` alone it is ``random``.
        num_samples: Configurations that any but the grid tries.
        scheduler: Another scheduler.
        seeds: Every configuration runs with the seeds 0 to ``seeds - 1``.
        search_seed: Fixes what is drawn.
        metric: Ranks trials instead of the experiment's own.
        mode: ``min`` or ``max``.
        is_ranked: Whether its own metric was chosen by somebody, so that another one needs a mode.

    Raises:
        InvalidSpaceError: a value that its parameter does not allow.
        InvalidExperimentError: wishes that contradict one another.
    """
    if metric not in (None, experiment.metric) and not mode and is_ranked:
        raise InvalidExperimentError(
            f"metric {metric} needs a mode, min or max; {experiment.name} is ranked by the "
            f"{experiment.mode} of {experiment.metric}"
        )
    changes: dict[str, Any] = {"search_seed": search_seed}
    if searcher is not None or num_samples is not None:
        changes |= {"searcher": searcher or "random", "num_samples": num_samples}
    if scheduler is not None:
        changes["scheduler"] = scheduler
    if seeds is not None:
        changes["seeds"] = tuple(range(seeds))
    changes |= {key: value for key, value in (("metric", metric), ("mode", mode)) if value}
    chosen = experiment.quick_version() if quick else experiment
    return chosen.replace(**chosen.changed_by(values), **changes)

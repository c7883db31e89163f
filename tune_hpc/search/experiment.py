"""An experiment: what is run, how it is judged, what was published, and what is drawn of it.

An experiment is data. ``tune_hpc.search.runner.run`` runs one; ``to_json`` is what experiment.json holds of it, and all
that the analysis knows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import islice
from typing import Any

from tune_hpc.analysis.frames import IDENTITY, MEASURES, METRICS
from tune_hpc.errors import FolderError, InvalidConfigError, InvalidExperimentError, InvalidSpaceError
from tune_hpc.learning.config import OWNERS, TRIAL_KEYS, check_key, owned_keys
from tune_hpc.search.object_reference import reference_to
from tune_hpc.search.options import ADAPTIVE, DESIGNS, SCHEDULERS, SEARCHERS
from tune_hpc.search.report_spec import Claim, Figure, Published, Table
from tune_hpc.search.space.samplers import quasi_random_configs, random_configs
from tune_hpc.search.space.space import Space

TRAIN = "tune_hpc.learning.training:train"
#: How a trial may have ended.
ENDED = ("finished", "stopped", "diverged", "failed")
#: What the line reports; images report all of ``METRICS``.
LINE_METRICS = ("train_loss", "W", "b")
#: What tells one search from another, whatever is drawn of it or said about it.
_SAME = ("name", "trainable", "metric", "mode", "seeds", "searcher", "num_samples", "search_seed", "scheduler")
#: The most configurations that a quick run of any but a grid tries.
QUICK_SAMPLES = 8
#: Keys of the built-in trainable that may change while a trial runs: they affect neither the network nor its optimizer
#: state.
CHANGEABLE_KEYS = tuple(
    key.name for key in TRIAL_KEYS.values() if key.kind is float and key.name not in ("width", "initial_accumulator")
)
#: Trial ids have five digits, and the driver holds every configuration.
MAX_TRIALS = 100_000


@dataclass(frozen=True)
class Experiment:
    """A trainable over a space.

    Attributes:
        name: Lower-case words; a dot separates an exercise from its stage.
        space: What may vary.
        trainable: A function ``(config, report)``, or where it is: ``package.module:function``.
        metric: The column of the trials frame that ranks trials.
        mode: ``min`` or ``max``.
        seeds: Every configuration runs once with each; the trainable finds its seed as ``config["seed"]``. Empty when
            the space itself has the parameter ``seed``, or when the trainable has no use for one.
        searcher: ``grid`` (every configuration), ``random``, ``quasi_random`` (a scrambled Sobol sequence), or one that
            learns from the trials that ended: ``tpe`` or ``gp`` (Optuna's).
        num_samples: Configurations that any but the grid tries.
        search_seed: Fixes what a searcher draws; at least 0. With ``tpe`` and ``gp`` the order in which trials end has
            a say, too.
        scheduler: What spends steps where they pay: ``none``; ``asha``, by which the best third go on (halving.py);
            ``asha_stopping``, ``hyperband`` or ``median``, which end trials that do badly (schedulers.py); or ``pbt``,
            which lets them copy better ones (population.py).
        title: One line for tables and reports.
        description: What is done and why, in a few sentences.
        source: Where the experiment was published.
        published: The published numbers.
        claims: The published sentences that can be checked.
        figures: What is drawn.
        tables: What is tabulated beyond the standard tables.
        quick_values: What a quick run changes in the space.
        quick: Whether this is a quick run, whose numbers are not comparable with published ones.
        runner: Who runs it, as ``package.module:function``.

    Raises:
        InvalidExperimentError: fields that contradict one another, or more than ``MAX_TRIALS`` trials.
        InvalidSpaceError: a parameter that the trainable does not know, or a quick value that it does not allow.

    Example:
        >>> from ray import tune
        >>> from tune_hpc import Experiment, Space
        >>> def train(config, report):
        ...     for step in range(1, 11):
        ...         report(step, {"loss": (config["x"] - 3) ** 2 / step})
        >>> space = Space({"x": tune.choice([1.0, 2.0, 3.0])})
        >>> experiment = Experiment("parabola", space, train, metric="loss", mode="min", seeds=(0, 1))
        >>> experiment.num_trials
        6
        >>> experiment.replace(searcher="random", num_samples=5).num_trials
        10
    """

    name: str
    space: Space
    trainable: str | Callable[..., Any] = TRAIN
    metric: str = "test_accuracy"
    mode: str = "max"
    seeds: tuple[int, ...] = (0,)
    searcher: str = "grid"
    num_samples: int | None = None
    search_seed: int = 0
    scheduler: str = "none"
    title: str = ""
    description: str = ""
    source: str = ""
    published: tuple[Published, ...] = ()
    claims: tuple[Claim, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    quick_values: Mapping[str, Any] = field(default_factory=dict)
    quick: bool = False
    runner: str = "tune_hpc.search.runner:run_all"

    def __post_init__(self) -> None:
        object.__setattr__(self, "seeds", tuple(self.seeds))
        object.__setattr__(self, "quick_values", dict(self.quick_values))
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", self.name):
            raise InvalidExperimentError(
                f"an experiment's name is letters, digits, underscores, dots and hyphens; got {self.name!r}"
            )
        if self.mode not in ("min", "max"):
            raise InvalidExperimentError(f"mode must be min or max; got {self.mode!r}")
        if self.searcher not in SEARCHERS:
            raise InvalidExperimentError(f"searcher must be one of {', '.join(SEARCHERS)}; got {self.searcher!r}")
        if self.scheduler not in SCHEDULERS:
            raise InvalidExperimentError(f"scheduler must be one of {', '.join(SCHEDULERS)}; got {self.scheduler!r}")
        if self.scheduler != "none":
            _ = self.max_steps
        if "seed" in self.space and self.seeds:
            object.__setattr__(self, "seeds", self.seeds if self.seeds != (0,) else ())
            if self.seeds:
                inside = self.space.describe("seed")
                raise InvalidExperimentError(
                    f"the seed is given twice: seed={inside} in the space and seeds={list(self.seeds)}"
                )
        if len(set(self.seeds)) < len(self.seeds):
            raise InvalidExperimentError(f"each seed is given once; got {list(self.seeds)}")
        if not all(isinstance(seed, int) and 0 <= seed < 2**31 for seed in self.seeds):
            raise InvalidExperimentError(f"a seed is a whole number from 0 to {2**31 - 1}; got {list(self.seeds)}")
        if self.search_seed < 0:
            raise InvalidExperimentError(f"search_seed must be at least 0; got {self.search_seed}")
        if self.num_samples is not None and self.num_samples < 1:
            raise InvalidExperimentError(f"num_samples must be at least 1; got {self.num_samples}")
        if self.searcher == "grid":
            if self.num_samples is not None:
                raise InvalidExperimentError(
                    f"a grid runs every configuration once; got num_samples={self.num_samples}: "
                    "leave it out, raise the number of seeds, or search at random"
                )
        elif self.num_samples is None:
            raise InvalidExperimentError(f"a {self.searcher} search needs num_samples; it was left out")
        elif self.searcher == "quasi_random" and self.space.size is not None and self.num_samples > self.space.size:
            raise InvalidExperimentError(
                f"a quasi-random search tries no configuration twice; got num_samples={self.num_samples} for "
                f"{self.space.size} configurations: ask for fewer, or for a grid"
            )
        if self.searcher in ADAPTIVE and not self.space.varying:
            raise InvalidExperimentError(f"{self.searcher} needs a parameter that varies; {self.name} has none")
        if self.searcher == "gp" and self.space.is_conditional:
            raise InvalidExperimentError("gp cannot model parameters with conditions; use tpe")
        if self.scheduler == "pbt":
            self._check_population()
        configurations = self.space.size if self.searcher == "grid" else self.num_samples
        if configurations is not None and configurations * max(1, len(self.seeds)) > MAX_TRIALS:
            raise InvalidExperimentError(
                f"an experiment has at most {MAX_TRIALS} trials; {self.name} has {self.num_trials}: narrow its space, "
                "or draw fewer with num_samples"
            )
        reference_to(self.trainable)
        if taken := [name for name in self.space if name in {*IDENTITY, *MEASURES}]:
            raise InvalidSpaceError(
                f"{taken[0]} is a column that every trial has; call the parameter otherwise (taken: "
                f"{', '.join([*IDENTITY, *MEASURES])})"
            )
        if self.trainable == TRAIN:
            self._check_keys()
            self._check_metric()
        _ = self.space | self.quick_values

    def _check_population(self) -> None:
        if self.searcher in ADAPTIVE:
            raise InvalidExperimentError(
                f"pbt learns by itself; got searcher={self.searcher}: begin with one of {', '.join(DESIGNS)}"
            )
        if not self.changeable_parameters:
            among = f", of {', '.join(CHANGEABLE_KEYS)}" if self.trainable == TRAIN else ""
            raise InvalidExperimentError(
                f"pbt changes parameters while trials run{among}; none of these varies in the space of {self.name}"
            )

    def _check_metric(self) -> None:
        """Refuse a metric that our own trainable never reports; one would know only when everything has run."""
        on_line = _possible(self.space, "model") == ["line"]
        known = [
            *(LINE_METRICS if on_line else METRICS),
            *(name for name in MEASURES if name not in ("num_fused", "attempt", "host", "device")),
        ]
        if self.metric not in known:
            raise InvalidExperimentError(
                f"the metric of {self.name} must be one of {', '.join(known)}; got {self.metric!r}"
            )

    def _check_keys(self) -> None:
        """Hold the space against the keys of our own trainable."""
        for name in self.space:
            try:
                check_key(name)
            except InvalidConfigError as error:
                raise InvalidSpaceError(str(error)) from None
        for owner, keys in OWNERS.items():
            chosen = _possible(self.space, owner)
            for name in self.space:
                owners = [one for one, defaults in keys.items() if name in defaults]
                if owners and not set(owners) & set(chosen):
                    raise InvalidSpaceError(
                        f"{name} belongs to {', '.join(owners)}; the space has {owner}={', '.join(chosen)}"
                    )

    def replace(self, **changes: Any) -> Experiment:
        """Return the experiment with some of its fields changed."""
        return replace(self, **changes)

    def with_values(self, values: Mapping[str, Any]) -> Experiment:
        """Return the experiment with some parameters of its space changed or added; see ``space_with``."""
        return replace(self, **self.changed_by(values))

    def changed_by(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields that differ once some parameters have changed: the space, and what the description says."""
        space = self.space_with(values)
        names = [name for name in values if name not in self.space or space.describe(name) != self.space.describe(name)]
        if not names or not self.description:
            return {"space": space}
        told = ", ".join(f"{name}={space.describe(name)}" for name in names)
        return {"space": space, "description": f"{self.description} Changed here: {told}."}

    def space_with(self, values: Mapping[str, Any]) -> Space:
        """Return its space with some parameters changed or added.

        With another optimizer or schedule the keys that only the former one had go.
        """
        space = self.space | values
        for owner, keys in OWNERS.items():
            if self.trainable == TRAIN and owner in values:
                kept = {name for one in _possible(space, owner) for name in keys[one]}
                space = space.without(
                    *(one for one in owned_keys(owner) if one in self.space and one not in kept | {*values})
                )
        return space

    def quick_version(self) -> Experiment:
        """Return the experiment at a size for a first look: fewer steps and values, and marked as such."""
        few = None if self.num_samples is None else min(self.num_samples, QUICK_SAMPLES)
        return replace(self, space=self.space | self.quick_values, num_samples=few, quick=True)

    @property
    def changeable_parameters(self) -> list[str]:
        """Parameters that population-based training may change: they vary, and no other parameter depends on them."""
        fixed = {"seed", "steps", *self.space.controls}
        changeable = CHANGEABLE_KEYS if self.trainable == TRAIN else self.space
        return [name for name in self.space.varying if name not in fixed and name in changeable]

    @property
    def max_steps(self) -> int:
        """The most steps that a trial may take.

        Raises:
            InvalidExperimentError: the space does not say.
        """
        default = [TRIAL_KEYS["steps"].default] if self.trainable == TRAIN else []
        values = self.space.reachable_values("steps") if "steps" in self.space else default
        if not values or not all(isinstance(one, int) and one >= 1 for one in values):
            raise InvalidExperimentError(
                f"a scheduler counts in steps; give the space of {self.name} a parameter steps, the last step that a "
                "trial reports"
            )
        return int(max(values))

    @property
    def num_trials(self) -> int:
        """How many trials it has."""
        configurations = self.space.size if self.searcher == "grid" else self.num_samples
        if configurations is None:
            next(self.space.grid())
        return int(configurations or 0) * max(1, len(self.seeds))

    def configs(self) -> Iterator[dict[str, Any]]:
        """Yield the configuration of every trial, in the order in which they start.

        The order is that of the space, each configuration with all its seeds in turn: the same on every machine.

        Raises:
            InvalidSpaceError: a grid over a continuous parameter.
            InvalidExperimentError: the searcher has to see how trials end before it proposes more.
        """
        if self.searcher in ADAPTIVE:
            raise InvalidExperimentError(f"what {self.searcher} tries is known when it has tried it")
        if self.searcher == "grid":
            configurations: Iterator[dict[str, Any]] = self.space.grid()
        else:
            stream = random_configs if self.searcher == "random" else quasi_random_configs
            configurations = islice(stream(self.space, self.search_seed), self.num_samples)
        for configuration in configurations:
            yield from self.with_seeds(configuration)

    def with_seeds(self, configuration: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return a configuration once with each seed."""
        return [{**configuration, "seed": seed} for seed in self.seeds] or [dict(configuration)]

    def check_matches(self, held: Mapping[str, Any], place: Any) -> None:
        """Refuse to go on with another search than this one.

        Args:
            held: What an experiment.json holds.
            place: Where it stands.

        Raises:
            FolderError: it is of another experiment, or of one that was asked for otherwise.
        """
        asked = self.to_json()
        settings = [(name, held.get(name), asked[name]) for name in _SAME]
        parameters = {**held.get("space", {}), **asked["space"]}
        settings += [(name, held.get("space", {}).get(name), asked["space"].get(name)) for name in parameters]
        for name, there, here in settings:
            if there != here:
                raise FolderError(
                    f"{place} holds another search: {name} is {there} there and {here} here; choose another folder, or "
                    "go on with that one as it is (tune-hpc resume)"
                )

    def to_json(self) -> dict[str, Any]:
        """Return what experiment.json holds of the experiment."""
        plain = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("space", "trainable")}
        for several in ("published", "claims", "figures", "tables"):
            plain[several] = [asdict(one) for one in plain[several]]
        return plain | {
            "seeds": list(self.seeds),
            "space": self.space.to_json(),
            "trainable": reference_to(self.trainable),
            "quick_values": (self.space.without(*self.space) | self.quick_values).to_json(),
            "num_trials": self.num_trials,
        }


def experiment_from_json(plain: Mapping[str, Any], trainable: str | Callable[..., Any] | None = None) -> Experiment:
    """Return the experiment that experiment.json describes.

    Args:
        plain: What ``to_json`` returned; more keys do no harm.
        trainable: The function, where its module cannot be imported by the name that is written there.

    Raises:
        FolderError: it lacks what an experiment needs.
        InvalidExperimentError: it describes one that contradicts itself.
        InvalidSpaceError: so does its space.
    """
    kinds = {"published": Published, "claims": Claim, "figures": Figure, "tables": Table}
    # Folders of before there were any have none.
    plain = {"claims": [], **plain}
    try:
        own = {one.name: plain[one.name] for one in fields(Experiment)}
        keys = TRIAL_KEYS if own["trainable"] == TRAIN else {}
        for name, kind in kinds.items():
            own[name] = tuple(kind(**{key: _as_tuple(value) for key, value in one.items()}) for one in own[name])
    except (KeyError, TypeError) as error:
        raise FolderError(f"experiment.json lacks or has too much of {error}; restore it from a copy") from error
    own |= {
        "space": Space.from_json(own["space"], keys=keys),
        "quick_values": dict(Space.from_json(own["quick_values"], keys=keys)),
        "trainable": trainable if trainable is not None else own["trainable"],
    }
    return Experiment(**own)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _possible(space: Space, name: str) -> list[Any]:
    """Return the values that a parameter of a few values may take."""
    return space.reachable_values(name) if name in space else [TRIAL_KEYS[name].default]

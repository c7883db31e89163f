"""Rules of fused training: which trials may train as one program. The module does not import torch."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tune_hpc.errors import InvalidConfigError
from tune_hpc.learning.config import owned_keys

#: Keys that may differ between the members of one program.
MEMBER_KEYS = (
    *("optimizer", "learning_rate", "schedule", "dropout", "seed", "initial_weights"),
    *owned_keys("optimizer"),
    *owned_keys("schedule"),
)


def fusion_key(config: Mapping[str, Any]) -> str:
    """Return the values of a completed configuration that all members of one program must share, as a string."""
    return json.dumps({name: value for name, value in sorted(config.items()) if name not in MEMBER_KEYS})


def check_fusible(configs: Sequence[Mapping[str, Any]]) -> None:
    """Check that completed configurations can train as one program.

    Raises:
        InvalidConfigError: they differ in a key outside ``MEMBER_KEYS``.
    """
    for name in dict.fromkeys(key for config in configs for key in config):
        if name not in MEMBER_KEYS:
            value = configs[0].get(name)
            for config in configs:
                if config.get(name) != value:
                    raise InvalidConfigError(f"fused trials must share {name}; got {value!r} and {config.get(name)!r}")


def stream_key(config: Mapping[str, Any]) -> int:
    """Return the value that members with the same batches share."""
    return int(config["seed"]) if config["batching"] in ("shuffled", "random") and config["model"] != "line" else 0


#: Maximum number of members of one program. Those for CPUs were measured (docs/performance.md). Those for GPUs were not
#: measured; they follow from the memory at the network's full width.
CPU_MEMBERS = {"line": 256, "softmax": 128, "cnn": 8}
GPU_MEMBERS = {"line": 1024, "softmax": 512, "cnn": 72}

#: Maximum width of the cnn at which fusion is faster on a CPU, because the overhead of calls dominates.
CPU_FUSED_WIDTH = 0.125


def max_fused_trials(config: Mapping[str, Any], on_gpu: bool) -> int:
    """Return the maximum number of trials like a completed configuration that should train as one program."""
    if on_gpu:
        return GPU_MEMBERS[config["model"]]
    if config["model"] == "cnn" and config["width"] > CPU_FUSED_WIDTH:
        return 1
    return CPU_MEMBERS[config["model"]]

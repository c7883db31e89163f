"""Which trials may train as one program. No torch is imported here: planning a search must stay cheap."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tune_hpc.errors import InvalidConfigError
from tune_hpc.learning.config import owned_keys

#: What may differ between the members of one program; all else they share.
MEMBER_KEYS = (
    *("optimizer", "learning_rate", "schedule", "dropout", "seed", "initial_weights"),
    *owned_keys("optimizer"),
    *owned_keys("schedule"),
)


def fusion_key(config: Mapping[str, Any]) -> str:
    """Return what members of one program must share, as text that can be compared.

    Args:
        config: A completed configuration.
    """
    return json.dumps({name: value for name, value in sorted(config.items()) if name not in MEMBER_KEYS})


def check_fusible(configs: Sequence[Mapping[str, Any]]) -> None:
    """Refuse members that cannot train as one program.

    Args:
        configs: Completed configurations.

    Raises:
        InvalidConfigError: they differ in a key outside ``MEMBER_KEYS``.
    """
    for name in dict.fromkeys(key for config in configs for key in config):
        if name not in MEMBER_KEYS:
            value = configs[0].get(name)
            for config in configs:
                if config.get(name) != value:
                    raise InvalidConfigError(
                        f"trials that train as one program share {name}; got {value!r} and {config.get(name)!r}"
                    )


def stream_key(config: Mapping[str, Any]) -> int:
    """Return what members must share to see the same batches."""
    return int(config["seed"]) if config["batching"] in ("shuffled", "random") and config["model"] != "line" else 0


#: The most members of one program, by model; on CPUs as measured in docs/performance.md. On GPUs no measurement stands
#: behind them yet: they are bounded by memory at the network's full width.
CPU_MEMBERS = {"line": 256, "softmax": 128, "cnn": 8}
GPU_MEMBERS = {"line": 1024, "softmax": 512, "cnn": 72}

#: Up to this width one call's overhead outweighs a CPU's work on the cnn.
CPU_FUSED_WIDTH = 0.125


def max_fused_trials(config: Mapping[str, Any], on_gpu: bool) -> int:
    """Return up to how many trials like this one should train as one program.

    Args:
        config: A completed configuration.
        on_gpu: Whether they run on a GPU.
    """
    if on_gpu:
        return GPU_MEMBERS[config["model"]]
    if config["model"] == "cnn" and config["width"] > CPU_FUSED_WIDTH:
        return 1
    return CPU_MEMBERS[config["model"]]

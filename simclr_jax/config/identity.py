"""When two configs are the same experiment: hashes and differences."""

import hashlib
import json
from typing import Any

from ml_collections import config_dict

# Keys that change how a run is stored, read, logged or ended, and not its mathematics.
_OPERATIONAL = (
    "data.data_dir",
    "data.threads",
    "data.parallel_reads",
    "data.memory_mb",
    "data.on_bad_record",
    "data.bad_records_max",
    "augment.host_views",
    "parallel.shard_state",
    "parallel.deterministic",
    "parallel.remat",
    "loss.form",
    "optimizer.on_nonfinite",
    "optimizer.max_skipped_steps",
    "log.",
    "checkpoint.",
    "evaluation.",
    "pretrain.init_from",
    "finetune.init_from",
    "distill.teacher",
    "distill.init_from",
)
# What versions without a key did: left out of the hash, so that hashes stay.
_WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "augment.crop.antialias": (False,),
    "batch.norm_group": (None,),
    "batch.norm_parts": (1,),
    "data.exif_orientation": (None, False),
    "data.white_level": (None, 65535),
    "encoder.zero_init_residual": (True,),
    "head.kernel_init": ("normal",),
    "optimizer.clip_norm": (None,),
    "optimizer.decayed": ("kernels",),
    "schedule.extend": ("stretch",),
    "schedule.extend_step": (None,),
    "schedule.extend_learning_rate": (None,),
    "finetune.class_weights": ("none",),
    "finetune.sampling": ("shuffled",),
}


def as_json(config: config_dict.ConfigDict) -> dict[str, Any]:
    """The config as plain JSON values, as `config.json` holds it."""
    return json.loads(json.dumps(config.to_dict()))


def flatten(config: config_dict.ConfigDict | dict[str, Any]) -> dict[str, Any]:
    """Leaves by their dotted key."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, config_dict.ConfigDict | dict):
            for inner, leaf in flatten(value).items():
                flat[f"{key}.{inner}"] = leaf
        else:
            flat[key] = value
    return flat


def fingerprint(config: dict[str, Any]) -> str:
    """16 hex digits over all keys that must be equal on all processes of a run."""
    # Keys that may differ between hosts.
    local = ("data.data_dir", "data.threads", "data.parallel_reads", "data.memory_mb")
    return _digest({k: v for k, v in flatten(config).items() if k not in local})


def config_hash(config: dict[str, Any]) -> str:
    """16 hex digits that identify the experiment of a config, as read from JSON."""
    return _digest(
        {
            key: value
            for key, value in flatten(config).items()
            if not key.startswith(_OPERATIONAL)
            and value not in _WITHOUT_EFFECT.get(key, ())
        }
    )


def _digest(values: dict[str, Any]) -> str:
    canonical = json.dumps(values, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


# Kinds of datasets whose name has a path.
_MOVABLE = ("folder", "prepared", "npz")


def is_moved(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether two configs have datasets of one kind at different places."""
    before, after = (config["data"]["dataset"] for config in (old, new))
    kinds = {str(name).partition(":")[0] for name in (before, after)}
    return before != after and len(kinds) == 1 and kinds <= {*_MOVABLE}


def differing_keys(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Keys whose values make the two different experiments, as 'key: old -> new'."""
    old_flat, new_flat = flatten(old), flatten(new)
    return [
        f"{key}: {old_flat.get(key)!r} -> {new_flat.get(key)!r}"
        for key in sorted({*old_flat, *new_flat})
        if old_flat.get(key) != new_flat.get(key) and not key.startswith(_OPERATIONAL)
    ]

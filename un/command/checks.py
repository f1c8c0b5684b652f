"""Values that are checked before anything is built; parts with a constructor check their own."""

from collections.abc import Mapping
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from un.command.errors import CONFIG_FOLDER, UserError, suggest
from un.command.value_types import FromOne, FromZero, NumberAboveZero, NumberFromZero, check_kind

# What a constructor would meet late or with a traceback, or what goes to none.
KINDS: dict[str, Any] = {
    "force": bool,
    "surgery.carry_affine": bool,
    "surgery.reset_steps": bool,
    "surgery.pad_mask": bool,
    "seed": FromZero,
    "average_checkpoints": FromZero | None,
    "final_statistics": Literal["train"] | None,
    "global_batch_size": FromOne | None,
    "updates": FromOne | None,
    "compile": bool | Literal["norms"] | Mapping[str, Any] | None,
    "trainer.max_epochs": FromOne | Literal[-1] | None,
    "trainer.max_steps": FromOne | Literal[-1],
    "trainer.accumulate_grad_batches": FromOne,
    "trainer.log_every_n_steps": FromOne,
    "trainer.check_val_every_n_epoch": FromOne | None,
    "trainer.gradient_clip_val": NumberFromZero | None,
    "trainer.limit_train_batches": NumberAboveZero | None,  # a run trains, validates and tests
    "trainer.limit_val_batches": NumberAboveZero | None,
    "trainer.limit_test_batches": NumberAboveZero | None,
}
ABSENT = object()
COMPILE_OPTIONS = ("fullgraph", "dynamic", "backend", "mode", "options")  # of torch.compile


def check_config(config: DictConfig) -> None:
    """Checks names, types and ranges.

    Raises:
        UserError: names the key, its value and what is allowed.
    """
    check_keys(config)
    for key, kind in KINDS.items():
        value = OmegaConf.select(config, key, default=ABSENT)
        if value is not ABSENT:
            check_kind(key, OmegaConf.to_container(value) if OmegaConf.is_config(value) else value, kind)
    for key in config.get("data") or {}:
        if OmegaConf.is_missing(config.data, key):
            raise UserError(f"data.{key} is missing: this data set has no value of its own, give data.{key}=<value>")
    if OmegaConf.select(config, "trainer.max_epochs") in (-1, None) and config.trainer.max_steps == -1:
        raise UserError("trainer.max_epochs and trainer.max_steps are both unlimited: set one of them")
    _check_compile(config)
    if config.norm.get("_target_") is None and config.get("final_statistics") is not None:
        raise UserError("final_statistics=train needs a norm with running statistics, and norm=layernorm has none")
    options = [key for key in config.norm if not str(key).startswith("_")]
    if config.norm.get("_target_") is None and options:
        raise UserError(f"norm=layernorm leaves the model untouched and has no options: got norm.{options[0]}")


def _check_compile(config: DictConfig) -> None:
    wanted: Any = config.get("compile")
    if wanted is None or wanted is False:
        return
    for name in wanted if OmegaConf.is_config(wanted) else ():
        if name not in COMPILE_OPTIONS:
            raise UserError(f"compile has no option {name!r}; it takes {', '.join(COMPILE_OPTIONS)}")
    if wanted != "norms" and OmegaConf.select(config, "callbacks.activation_stats") is not None:
        raise UserError("compile and callbacks=activation_stats exclude each other: compiled norms call no recorder")


def check_keys(config: DictConfig) -> None:
    """Checks the keys that no `_target_` checks, which a plus lets in: those of the whole and those of surgery."""
    train: Any = OmegaConf.load(CONFIG_FOLDER / "train.yaml")
    groups = [name for entry in train.defaults if isinstance(entry, DictConfig) for name in entry]
    surgery: Any = OmegaConf.load(CONFIG_FOLDER / "surgery/all.yaml")
    keys = [*train, *groups, "norm_defaults"]  # which configs/task sets
    for prefix, node, known in (("", config, keys), ("surgery.", config.get("surgery") or {}, [*surgery])):
        for key in map(str, node):
            if key not in known:
                raise UserError(f"there is no config key '{prefix}{key}'{suggest(key, known)}")


def check_ablation(config: DictConfig) -> None:
    """Raises a UserError where the ablation makes no sense for the task: `ablation.tasks` lists those it is for."""
    ablation, target = config.get("ablation"), config.task._target_
    if ablation is None or target.split(".")[1] in ablation.tasks:
        return
    raise UserError(
        f"this ablation makes no sense for {target}: {ablation.reason}. It is for: {', '.join(ablation.tasks)}"
    )

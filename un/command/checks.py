"""Values that are checked before anything is built; parts with a constructor check their own."""

from numbers import Real
from typing import Any

from omegaconf import DictConfig, OmegaConf

from un.command.errors import CONFIG_FOLDER, UserError, suggest

# key -> (type, least value, other allowed values). Lightning meets wrong ones late or with a traceback.
LIMITS: dict[str, tuple[type, float, tuple[Any, ...]]] = {
    "seed": (int, 0, ()),
    "average_checkpoints": (int, 0, (None,)),
    "global_batch_size": (int, 1, (None,)),
    "updates": (int, 1, (None,)),
    "trainer.max_epochs": (int, 1, (-1, None)),
    "trainer.max_steps": (int, 1, (-1,)),
    "trainer.accumulate_grad_batches": (int, 1, ()),
    "trainer.log_every_n_steps": (int, 1, ()),
    "trainer.check_val_every_n_epoch": (int, 1, (None,)),
    "trainer.gradient_clip_val": (Real, 0, (None,)),
    "trainer.limit_train_batches": (Real, 0, (None,)),
    "trainer.limit_val_batches": (Real, 0, (None,)),
    "trainer.limit_test_batches": (Real, 0, (None,)),
    "callbacks.checkpoints.every_n_steps": (int, 1, ()),
}

COMPILE_OPTIONS = ("fullgraph", "dynamic", "backend", "mode", "options")  # of torch.compile


FLAGS = ("force", "surgery.carry_affine", "surgery.reset_steps", "surgery.pad_mask")


def check_config(config: DictConfig) -> None:
    """Checks types and ranges.

    Raises:
        UserError: names the key, its value and what is allowed.
    """
    check_keys(config)
    for key in FLAGS:
        value = OmegaConf.select(config, key, default=False)
        if not isinstance(value, bool):
            raise UserError(f"{key}={value} must be true or false")
    for key, (kind, least, others) in LIMITS.items():
        value = OmegaConf.select(config, key)
        if value in others or (value is None and key not in config):
            continue
        if isinstance(value, bool) or not isinstance(value, kind) or value < least:  # type: ignore[operator]
            name = "an integer" if kind is int else "a number"
            alternatives = "".join(f" or {'null' if other is None else other}" for other in others)
            raise UserError(f"{key}={value} must be {name} of at least {least}{alternatives}")
    for split in ("train", "val", "test"):
        if OmegaConf.select(config, f"trainer.limit_{split}_batches") == 0:
            raise UserError(f"trainer.limit_{split}_batches=0 leaves nothing: a run trains, validates and tests")
    if OmegaConf.select(config, "trainer.max_epochs") in (-1, None) and config.trainer.max_steps == -1:
        raise UserError("trainer.max_epochs and trainer.max_steps are both unlimited: give one of them")
    _check_compile(config)
    options = [key for key in config.norm if not str(key).startswith("_")]
    if config.norm.get("_target_") is None and options:
        raise UserError(f"norm=layernorm leaves the model untouched and has no option: got norm.{options[0]}")


def _check_compile(config: DictConfig) -> None:
    wanted: Any = config.get("compile")
    if wanted is None or wanted is False:
        return
    if wanted is not True and not isinstance(wanted, DictConfig):
        raise UserError(f"compile={wanted} must be true, null or options such as {{mode: max-autotune}}")
    for name in () if wanted is True else wanted:
        if name not in COMPILE_OPTIONS:
            raise UserError(f"compile has no option {name!r}; it takes {', '.join(COMPILE_OPTIONS)}")
    if OmegaConf.select(config, "callbacks.activation_stats") is not None:
        raise UserError("compile and callbacks=activation_stats exclude each other: compiled norms call no recorder")


def check_keys(config: DictConfig) -> None:
    """Checks the keys that no `_target_` checks: those of the whole and those of surgery.

    Raises:
        UserError: one is unknown, as only a plus before it lets it in.
    """
    train: Any = OmegaConf.load(CONFIG_FOLDER / "train.yaml")
    groups = [name for entry in train.defaults if isinstance(entry, DictConfig) for name in entry]
    surgery: Any = OmegaConf.load(CONFIG_FOLDER / "surgery/all.yaml")
    for prefix, node, known in (("", config, [*train, *groups]), ("surgery.", config.get("surgery") or {}, [*surgery])):
        for key in map(str, node):
            if key not in known:
                raise UserError(f"there is no config key '{prefix}{key}'{suggest(key, known)}")


def check_ablation(config: DictConfig) -> None:
    """Checks that the ablation asks something of this task; `ablation.tasks` lists those parts of `un` where it does.

    Raises:
        UserError: it does not; `ablation.reason` says why.
    """
    ablation, target = config.get("ablation"), config.task._target_
    if ablation is None or target.split(".")[1] in ablation.tasks:
        return
    raise UserError(
        f"this ablation makes no sense for {target}: {ablation.reason}. It is for: {', '.join(ablation.tasks)}"
    )

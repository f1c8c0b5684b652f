"""Strategies of command lines of train.py: wrong in one place, or valid as a whole."""

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from hydra import compose, initialize_config_dir
from hypothesis import strategies as st
from omegaconf import OmegaConf

from un.command.errors import CONFIG_FOLDER
from un.norms import Switches

FOLDER = Path(__file__).parent
TINY = "debug=fast trainer.max_steps=1 trainer.limit_val_batches=1 trainer.limit_test_batches=1 trainer.accelerator=cpu"
SHORT = [*TINY.split(), "data.limit=16", "callbacks.progress_bar=null"]
TASKS = {
    "vision": ["model.depth=1", *SHORT],
    "translation": ["experiment=phrasebook_tiny", "model.encoder_layers=1", "task.beam=1", *SHORT],
}
HUGE = str(10**30)  # more than any machine holds: a mere million of layers would be right, and slow
VALUES = f"abc -1 0 1.5 3 nan inf -inf {HUGE} 1e-300 '' null true /nowhere été 'été' norm [] [1,2] [a,[b]] {{}}".split()
VALUES += ["'a b'", "{a: 1}", "{_target_: nowhere.Nothing}"]
# Values that start other processes, or wait for other machines: they are right.
NOT_TRIED = [(key, value) for key in ("trainer.devices", "trainer.num_nodes") for value in ("3", HUGE)]
# One command line each; right for one of the tasks, now and then.
CONTRADICTIONS = [line.split() for line in (FOLDER / "contradictions.txt").read_text().splitlines()]
BROKEN = [*(FOLDER / "broken.txt").read_text().splitlines(), "seed=\n1", "se\ned=1", "norm=un\t", "\x00", "", " "]


@cache
def list_keys(task: str) -> list[str]:
    """Returns the dotted keys of the composed config, but not of paths, since any text names a folder for runs."""
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        config = OmegaConf.to_container(compose("train", TASKS[task]))
    return sorted(key for key in flatten(config) if key.partition(".")[0] != "paths")


def flatten(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from flatten(value, f"{prefix}{key}.")


@st.composite
def misspelt(draw: st.DrawFn, text: str) -> str:
    """A letter is left out, doubled or replaced."""
    place = draw(st.integers(0, len(text) - 1))
    return text[:place] + draw(st.sampled_from(["", 2 * text[place], "x", "é", "/"])) + text[place + 1 :]


@st.composite
def wrong_overrides(draw: st.DrawFn, keys: list[str]) -> list[str]:
    """What makes a valid command line wrong, most of the time."""
    kind = draw(st.sampled_from(["value", "value", "key", "unknown", "broken"]))
    if kind == "broken":
        return [draw(st.sampled_from(BROKEN) | st.text(min_size=1, max_size=8))]
    key = draw(st.sampled_from(keys))
    value = draw(st.sampled_from(VALUES).filter(lambda value: (key, value) not in NOT_TRIED))
    if kind == "key":
        return [f"{draw(st.sampled_from(['', '+']))}{draw(misspelt(key))}={value}"]
    return [f"{key}={value}" if kind == "value" else f"+{key}.nothing={value}"]


@st.composite
def wrong_lines(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A task, and what is added to its command line."""
    task = draw(st.sampled_from(sorted(TASKS)))
    return task, draw(st.sampled_from(CONTRADICTIONS) | wrong_overrides(list_keys(task)))


FLAG = st.sampled_from(["true", "false"])
FRACTION = st.sampled_from(["0", "0.1", "0.98", "1"])
STEPS = st.integers(0, 4)
# Switches of words and flags are drawn by their types, new ones too.
UNIFIED: dict[str, st.SearchStrategy[Any]] = {
    name: FLAG if hint is bool else st.sampled_from(get_args(hint))
    for name, hint in get_type_hints(Switches).items()
    if hint is bool or get_origin(hint) is Literal
} | {
    "compensation_limits": st.sampled_from(["null", "[0.2,5]", "[1,1]"]),
    "threshold_factor": st.sampled_from(["null", "0", "0.5"]),
    "window": st.sampled_from(["1", "3", "[2,4]"]),
    "warmup_steps": STEPS,
    "filtration": FLAG,
    "momentum": FRACTION,
}
NORMS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "layernorm": {},
    "un": UNIFIED,
    "un_paper": UNIFIED,
    "batchnorm": {"momentum": FRACTION, "sync": FLAG},
    "powernorm": {"alpha_forward": FRACTION, "warmup_steps": STEPS, "group_scaling": FLAG},
    "mabn": {"window": UNIFIED["window"], "warmup_steps": STEPS, "momentum": FRACTION},
    "rep_batchnorm": {"initial_eta": FRACTION, "momentum": FRACTION},
    "prepbn": {"steps": st.integers(1, 3), "layer_norm_steps": STEPS, "start": FRACTION},
    "tapernorm": {
        "base": st.sampled_from(["rmsnorm", "layernorm"]),
        "start_fraction": st.sampled_from(["0", "0.5"]),
        "end_fraction": st.sampled_from(["0.5", "1"]),
        "sync": FLAG,
    },
    "un_recommended": {"centering": UNIFIED["centering"], "warmup_fraction": FRACTION},
    "dyt": {"bias": FLAG},
    "derf": {"bias": FLAG},
}
VISION = "data.batch_size=4 data.limit=40"
TRANSLATION = "experiment=phrasebook_tiny data.path=null data.limit=60 task.beam=2 data.max_tokens=400"
NARROW = f"{TRANSLATION} model.encoder_embed_dim=8 model.encoder_ffn_embed_dim=16 model.encoder_attention_heads=2"
MODELS = [
    f"{VISION} model=vit_digits model.num_heads=2 model.embed_dim=8 model.depth=1 task.ema_decay=0.5",
    f"{VISION} model=vit_digits model.embed_dim=8 model.depth=2 model.global_pool=token model.class_token=true",
    f"{VISION} model=swin_tiny_patch4_window7_224 +model.embed_dim=8 +model.num_heads=[1,2] +model.patch_size=2 "
    "+model.depths=[1,2] +model.window_size=2",
    f"{VISION} model=t2t_vit_7 +model.num_heads=2 +model.embed_dim=8 +model.depth=1 +model.token_dim=8 "
    "data.image_size=32",
    f"{NARROW} model.encoder_normalize_before=true surgery.pad_mask=true",
    f"{NARROW} model.encoder_normalize_before=false +model.layernorm_embedding=true surgery.pad_mask=false",
    f"{NARROW} model.share_all_embeddings=false +data.joined_dictionary=false data.bpe_merges=null",
]


@st.composite
def valid_lines(draw: st.DrawFn) -> list[str]:
    """A whole command line of two updates."""
    norm = draw(st.sampled_from(sorted(NORMS)))
    options = draw(st.lists(st.sampled_from(sorted(NORMS[norm])), max_size=6, unique=True)) if NORMS[norm] else []
    precision = draw(st.sampled_from(["32-true", "bf16-mixed", "bf16-true", "64-true"]))
    return [
        *draw(st.sampled_from(MODELS)).split(),
        f"norm={norm}",
        *(f"norm.{option}={draw(NORMS[norm][option])}" for option in options),
        f"surgery.carry_affine={draw(FLAG)}",
        f"surgery.reset_steps={draw(FLAG)}",
        f"trainer.precision={precision}",
        f"trainer.accumulate_grad_batches={draw(st.integers(1, 2))}",
        f"trainer.gradient_clip_val={draw(st.sampled_from(['null', '0.5']))}",
        "trainer.max_steps=2",
        "trainer.accelerator=cpu",
        "trainer.limit_val_batches=1",
        "callbacks.progress_bar=null",
    ]

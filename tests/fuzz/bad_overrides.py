"""Strategies of command lines with something wrong in them."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir
from hypothesis import strategies as st
from omegaconf import OmegaConf

from un.command.errors import CONFIG_FOLDER

SHORT = [
    *("debug=fast", "trainer.max_steps=1", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1"),
    *("trainer.accelerator=cpu", "data.limit=16", "callbacks.progress_bar=null"),
]
TASKS = {
    "vision": ["model.depth=1", *SHORT],
    "translation": ["experiment=phrasebook_tiny", "model.encoder_layers=1", "task.beam=1", *SHORT],
}
HUGE = str(10**30)  # more than any machine holds: a mere million of layers would be right, and slow
VALUES = [
    *(
        "abc",
        "-1",
        "0",
        "1.5",
        "nan",
        "inf",
        "-inf",
        HUGE,
        "''",
        "null",
        "true",
        "/nowhere",
        "été",
        "'été'",
        "norm",
        "'a b'",
    ),
    *("[]", "[1,2]", "[a,[b]]", "{}", "{a: 1}", "{_target_: nowhere.Nothing}", "1e-300", "3"),
]
# Right values that start other processes, or wait for other machines.
NOT_TRIED = {
    ("trainer.devices", "3"),
    ("trainer.devices", HUGE),
    ("trainer.num_nodes", "3"),
    ("trainer.num_nodes", HUGE),
}
GROUPS = {
    path.name: sorted(file.stem for file in path.glob("*.yaml")) for path in CONFIG_FOLDER.iterdir() if path.is_dir()
}
CONTRADICTIONS = [
    ["norm._partial_=abc"],
    ["callbacks=[1,2]"],
    ["norm.window=0"],
    ["norm.window=[4,0]"],
    ["norm.window=[1,2,3]"],
    ["norm.momentum=[0.9]"],
    ["norm.compensation_limits=[2,3]"],
    ["norm=powernorm", "norm.num_groups=7"],
    ["norm=powernorm", "norm.num_groups=0"],
    ["norm=prepbn", "norm.base=batchnorm"],
    ["norm=layernorm", "+norm.eps=1e-3"],
    ["norm=un", "norm.warmup_steps=-1"],
    ["norm=un", "+norm.num_groups=2"],
    ["norm=un", "norm.centering=mean"],
    ["surgery.include=[nothing]"],
    ["surgery.exclude=['*']"],
    ["surgery.include=[]"],
    ["data.batch_size=0"],
    ["data.batch_size=64"],
    ["data.val_size=0"],
    ["data.limit=1"],
    ["trainer.max_epochs=-1", "trainer.max_steps=-1"],
    ["trainer.limit_val_batches=0"],
    ["trainer.accumulate_grad_batches=0"],
    ["trainer.precision=16-true"],
    ["trainer.gradient_clip_algorithm=abc"],
    ["trainer.strategy=nothing"],
    ["trainer.accelerator=tpu"],
    ["trainer.val_check_interval=1000"],
    ["callbacks.checkpoints=null"],
    ["callbacks.stopwatch=null"],
    ["callbacks.seeding=null"],
    ["average_checkpoints=3"],
    ["optimizer.opt=nothing"],
    ["optimizer.betas=[0.9]"],
    ["optimizer.betas=[2,3]"],
    ["~optimizer"],
    ["~scheduler"],
    ["~task"],
    ["~norm"],
    ["~model._target_"],
    ["task._target_=un.nowhere.Task"],
    ["task._target_=un.surgery.replace_norms"],
    ["hparams_search=learning_rate"],
    ["ablation=un_padding", "norm=layernorm"],
    ["init_weights=/nowhere.ckpt"],
    ["init_weights=train.py"],
    ["init_weights=."],
    ["data.path=/nowhere"],
    ["data.path=README.md"],
    ["data.path=tests"],
    ["paths.runs=README.md"],
    ["paths.runs=/proc/nowhere"],
    ["paths.runs="],
    ["paths.runs=null"],
    ["+paths.runs.nothing=3"],
    ["hydra.run.dir=/proc/nowhere"],
    ["hydra/launcher=nothing"],
    ["logger=[csv,nothing]"],
]
OF_TASK = {
    "vision": [
        ["model.num_heads=3"],
        ["model.patch_size=3"],
        ["model.depth=0"],
        ["model.name=nothing"],
        ["model.global_pool=token"],
        ["data.image_size=7"],
        ["data.num_channels=2"],
        ["data.num_classes=1"],
        ["data.path=sklearn-digits", "data.num_classes=3"],
        ["data.transform._target_=0"],
        ["data.transform.mean=[]"],
        ["data.transform.mean=[0.1,0.2]"],
        ["data.transform.std=[0]"],
        ["task.mixup={mixup_alpha: -1}"],
        ["task.mixup={alpha: 1}"],
        ["task.mixup={}", "data.batch_size=3"],
        ["task.ema_decay=2"],
        ["task.label_smoothing=2"],
        ["scheduler=inverse_sqrt"],
        ["scheduler.sched=nothing"],
        ["optimizer=sgd", "optimizer.param_group_fn.body=[]"],
        ["task=translation"],
        ["model=transformer_tiny"],
        ["data=phrasebook"],
        ["model=swin_tiny_patch4_window7_224"],
        ["model=t2t_vit_7"],
    ],
    "translation": [
        ["model.encoder_attention_heads=3"],
        ["model.encoder_layers=0"],
        ["model.arch=nothing"],
        ["+model.nothing=1"],
        ["model.dropout=2"],
        ["task.beam=0"],
        ["task.max_len_b=-1"],
        ["task.val_bleu={beams: 3}"],
        ["task.val_bleu={beam: 0}"],
        ["data.max_tokens=1"],
        ["data.bpe_merges=0"],
        ["data.source_lang=en"],
        ["data.source_lang=xx"],
        ["+data.joined_dictionary=false"],
        ["+data.max_source_positions=2"],
        ["scheduler=cosine"],
        ["task=image_classification"],
        ["model=vit_digits"],
        ["data=digits"],
        ["+model.checkpoint_activations=true"],
    ],
}
BROKEN = [
    *("=un", "norm", "+", "~", "~x", "+=1", "norm=", "norm==un", "=", "norm.=1", ".norm=1", "norm..window=1"),
    *("norm={", "norm=}", "norm.window=[1", "norm.window=1]", "norm.window='1", 'norm.window="1', "norm.window=(1"),
    *("norm.window=a b", "norm.window=$x", "norm.window=${", "norm.window=${nothing}", "norm.window=${norm.window}"),
    *("seed=${seed}", "seed=\n1", "se\ned=1", "norm=un\t", "norm.window=\\", "norm.window=é", "été=1", "norm@x=un"),
    *(
        "norm@data=un",
        "+norm@=un",
        "norm=[un,layernorm]",
        "norm=un,layernorm",
        "seed=range(3)",
        "norm.window=${oc.env:X}",
    ),
    *(
        "++norm.window={a:{b:[}}",
        "--nothing",
        "-x",
        "--config-name=nothing",
        "--cfg=nothing",
        "\x00",
        "'",
        '"',
        "",
        " ",
    ),
    *(
        "norm.window=sort(3,1)",
        "norm.window=glob(*)",
        "seed=interval(0,1)",
        "trainer.max_steps=1,2",
        "hydra.verbose=abc",
    ),
    *("experiment=nothing/x", "experiment=../train", "norm=../data/digits", "seed=cast(1)", "seed=int(abc)", "+seed=1"),
]


@cache
def list_keys(task: str) -> list[str]:
    """Dotted keys of the composed config, of groups too; but not paths, since any text names a folder for runs."""
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        config = OmegaConf.to_container(compose("train", TASKS[task]))
    return sorted(key for key in _flatten(config) if key != "paths" and not key.startswith("paths."))


def _flatten(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _flatten(value, f"{prefix}{key}.")


@st.composite
def misspelt(draw: st.DrawFn, text: str) -> str:
    """A letter is left out, doubled or another."""
    place = draw(st.integers(0, len(text) - 1))
    return text[:place] + draw(st.sampled_from(["", 2 * text[place], "x", "é", "/"])) + text[place + 1 :]


@st.composite
def mutations(draw: st.DrawFn, task: str) -> list[str]:
    """What is added to a valid command line."""
    kind = draw(st.sampled_from(["value", "value", "value", "key", "choice", "unknown", "contradiction", "broken"]))
    if kind == "contradiction":
        return draw(st.sampled_from(CONTRADICTIONS + OF_TASK[task]))
    if kind == "broken":
        return [draw(st.sampled_from(BROKEN) | st.text(min_size=1, max_size=8))]
    if kind == "choice":
        group = draw(st.sampled_from(sorted(GROUPS)))
        return [f"{group}={draw(misspelt(draw(st.sampled_from(GROUPS[group]))))}"]
    key = draw(st.sampled_from(list_keys(task)))
    value = draw(st.sampled_from(VALUES).filter(lambda value: (key, value) not in NOT_TRIED))
    if kind == "value":
        return [f"{key}={value}"]
    if kind == "key":
        return [f"{draw(st.sampled_from(['', '+']))}{draw(misspelt(key))}={value}"]
    return [f"+{key}.nothing={value}"]


@st.composite
def bad_lines(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A task and what is added to its command line."""
    task = draw(st.sampled_from(sorted(TASKS)))
    return task, draw(mutations(task))

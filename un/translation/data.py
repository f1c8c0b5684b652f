"""Parallel text for Lightning: splits, checks and resumable batches."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from un.datasets import BatchLoader, ResumableDataModule
from un.translation.batches import GROUPINGS, Batch, GroupBy, TokenSampler, load_batches
from un.translation.corpus import Split, SplitTexts, make_dataset
from un.translation.corruption import Corruption
from un.translation.fairseq_library import Dictionary
from un.translation.prediction import SentencePrediction
from un.translation.prepared import PreparedFolder, is_prepared
from un.translation.preprocessor import TextPreprocessor
from un.translation.sources import ParallelText, draw_rows, generate_texts, read_text
from un.translation.text import check_language
from un.translation.vocabulary import encode_text, encode_words, learn_preprocessor, split_sides

GENERATED_PAIRS = 64  # ours: of each split for `path: null`, where `limit` gives none
LEAST = {  # values of arguments
    "max_tokens": 1,
    "batch_size": 1,
    "batch_size_multiple": 1,
    "bpe_merges": 1,
    "max_source_positions": 1,
    "max_target_positions": 1,
    "limit": 1,
    "split_seed": 0,
}
NUM_EXAMPLES, EXAMPLE_LENGTH = 8, 12  # ours: pairs of an example batch, and most tokens of each side


@dataclass(eq=False)
class TranslationDataModule(ResumableDataModule):
    """Loads sentence pairs to train, validate and test on.

    The path is `phrasebook`, a hub id, or a local folder: of fairseq's binary files (words and subwords are then as
    they were made), of two text files per split, or of a data set with a column per language. Null stands for a few
    sentences of the phrasebook.

    Raises:
        ValueError: A value is out of range or a language unknown; from `setup`, the data are bad.
    """

    path: str | None
    source_lang: str  # code of the language to translate from
    target_lang: str
    max_tokens: int  # of a batch and process, padding included, of the longer side
    batch_size: int | None = None  # most pairs of a batch; None is no limit
    batch_size_multiple: int = 1  # in training, batches have fewer pairs than this, or a multiple of it
    group_by: GroupBy = "lengths"  # how pairs share training batches; the others are for more padding, `TokenSampler`
    lowercase: bool = False
    bpe_merges: int | None = None  # of byte-pair encoding, learned on the training split; None leaves words whole
    joined_dictionary: bool = True  # of both languages, which sharing all embeddings needs
    max_source_positions: int = 1024  # most tokens of a source; training leaves longer ones out
    max_target_positions: int = 1024
    train_split: str = "train"  # name in data with names of their own, as the next two
    val_split: str = "validation"
    test_split: str = "test"
    limit: int | None = None  # at most this many pairs per split, drawn by `split_seed`; None is all
    num_workers: int = 0  # processes that read and pad
    seed: int = 0  # of the order
    split_seed: int | None = None  # of `limit`; None is `seed`
    corruption: Corruption | None = None  # of the test pairs, see `un.translation.corruption`

    preprocessor_class = TextPreprocessor
    fixed_arguments = ("source_lang", "target_lang", "lowercase", "bpe_merges", "joined_dictionary")

    def __post_init__(self) -> None:
        super().__init__()
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"data.{name}={value} must be at least {least}")
        if self.group_by not in GROUPINGS:
            raise ValueError(f"data.group_by={self.group_by} must be one of {', '.join(GROUPINGS)}")
        for name in ("source_lang", "target_lang"):
            check_language(getattr(self, name), f"data.{name}")
        if self.source_lang == self.target_lang:
            raise ValueError(f"data.source_lang and data.target_lang are both {self.source_lang!r}")
        self.languages = (self.source_lang, self.target_lang)
        self.split_names = {"train": self.train_split, "val": self.val_split, "test": self.test_split}
        self.draw_seed = self.seed if self.split_seed is None else self.split_seed
        self._preprocessor: TextPreprocessor | None = None
        self._splits: dict[str, Split] = {}

    def setup(self, stage: str | None = None) -> None:
        """Reads, checks and encodes all splits, once; if a vocabulary was given, each split when it is asked for."""
        if self._preprocessor is not None:
            return
        if self._prepared is not None:
            self._preprocessor = self._prepared.read_preprocessor(self.lowercase)
        else:
            text = self._read_text("train")
            words = split_sides(text, self.languages, lowercase=self.lowercase)
            self._preprocessor = learn_preprocessor(
                words,
                self.languages,
                lowercase=self.lowercase,
                merges=self.bpe_merges,
                joined=self.joined_dictionary,
            )
            self._splits["train"] = encode_words(text, words, self._preprocessor)
        for name in self.split_names:
            self.open_split(name)

    @property
    def preprocessor(self) -> TextPreprocessor:
        """What lies between text and ids: learned on the training split, of a prepared folder, or given."""
        self.setup()
        assert self._preprocessor is not None
        return self._preprocessor

    def use_preprocessor(self, preprocessor: TextPreprocessor) -> None:
        """Encodes with this vocabulary from now on; each split is read when it is first asked for."""
        self._preprocessor, self._splits = preprocessor, {}

    def open_split(self, name: str) -> Split:
        """Returns `train`, `val` or `test`, encoded."""
        if name not in self._splits:
            preprocessor = self.preprocessor
            if self._prepared is not None:
                if name == "test" and self.corruption is not None:
                    raise ValueError(f"data.corruption takes text, and {self.path} holds numbers of words")
                self._splits[name] = self._prepared.open_split(name, preprocessor, self.limit, self.draw_seed)
            else:
                self._splits[name] = encode_text(self._read_text(name), preprocessor)
        return self._splits[name]

    @property
    def _prepared(self) -> PreparedFolder | None:
        if self.path is not None and is_prepared(self.path, self.languages):
            return PreparedFolder(Path(self.path), self.languages)
        return None

    def _read_text(self, name: str) -> ParallelText:
        if self.path is None:
            return generate_texts(self.languages, dict.fromkeys(self.split_names, self.limit or GENERATED_PAIRS))[name]
        text = read_text(self.path, self.languages, name, self.split_names[name])
        text = text.drop_empty() if name == "train" else text
        text = text.select(draw_rows(len(text), self.limit, self.draw_seed))
        return self.corruption(text) if name == "test" and self.corruption is not None else text

    def model_arguments(self) -> dict[str, Any]:
        """Returns what the data decide about a model."""
        source, target = self.preprocessor.dictionaries
        return {"source_dictionary": source, "target_dictionary": target}

    def texts(self, split: str) -> SplitTexts:
        """Returns the texts of `train`, `val` or `test`, by the `id` in the batches of its loader."""
        return self.open_split(self.name_loaded(split)).texts

    def make_example_batch(self, seed: int) -> Batch:
        """Returns a batch of random words, of any lengths, padded."""
        random = np.random.default_rng(seed)

        def draw_side(dictionary: Dictionary, most: int) -> list[Tensor]:
            lengths = random.integers(0, min(EXAMPLE_LENGTH, most), NUM_EXAMPLES)
            words = (random.integers(dictionary.nspecial, len(dictionary), length) for length in lengths)
            return [torch.tensor([*sentence, dictionary.eos()]) for sentence in words]

        source_dictionary, target_dictionary = self.preprocessor.dictionaries
        source = draw_side(source_dictionary, self.max_source_positions)
        target = draw_side(target_dictionary, self.max_target_positions)
        dataset = make_dataset(source, target, source_dictionary, target_dictionary)
        batch: Batch = dataset.collater([dataset[number] for number in range(NUM_EXAMPLES)])
        return batch

    def make_prediction(self) -> SentencePrediction:
        """Returns what turns sentences into batches, and hypotheses into text."""
        return SentencePrediction(self.preprocessor, self.max_source_positions, self.max_tokens)

    def make_loader(self, split: str, training: bool) -> BatchLoader:
        chosen = self.open_split(split)
        limits = self.max_source_positions, self.max_target_positions, self.max_tokens
        sampler = TokenSampler(
            chosen.dataset.sizes,
            chosen.list_fitting(*limits, training=split == "train"),
            self.max_tokens,
            self.batch_size,
            training=training,
            seed=self.seed,
            multiple=self.batch_size_multiple if training else 1,
            group_by=self.group_by,
            rank=self.rank,
            world_size=self.world_size,
        )
        return BatchLoader(sampler, partial(load_batches, chosen.dataset, sampler, self.num_workers))

"""Parallel text for Lightning: splits, checks and resumable batches."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from un.datasets import BatchLoader, ResumableDataModule
from un.translation.batches import Batch, TokenSampler, load_batches
from un.translation.corpus import Split, SplitTexts, make_dataset
from un.translation.fairseq_library import Dictionary
from un.translation.prepared import PreparedFolder, is_prepared
from un.translation.preprocessor import TextPreprocessor
from un.translation.sources import ParallelText, draw_rows, generate_texts, read_text
from un.translation.text import check_language
from un.translation.vocabulary import encode_text, encode_words, learn_preprocessor, split_sides

GENERATED_PAIRS = 64  # ours: of each split for `path: null`, where `limit` gives none
NUM_EXAMPLES, EXAMPLE_LENGTH = 8, 12  # ours: pairs of an example batch, and most tokens of each side


class TranslationDataModule(ResumableDataModule):
    """Loads sentence pairs to train, validate and test on.

    Args:
        path: `phrasebook`, a hub id, or a local folder: of fairseq's binary files (then words and subwords are as they
            were made), of two text files per split, or of a data set with a column per language. Null stands for a few
            sentences of the phrasebook.
        source_lang: Code of the language to translate from.
        target_lang: Code of the language to translate into.
        max_tokens: Most tokens of a batch and process, padding included, of the longer side.
        batch_size: Most pairs of a batch; null is no limit.
        batch_size_multiple: In training, batches have fewer pairs than this, or a multiple of it.
        lowercase: Whether text is lower-cased.
        bpe_merges: Merges of byte-pair encoding, learned on the training split; null leaves words whole.
        joined_dictionary: Whether both languages share one dictionary, which sharing all embeddings needs.
        max_source_positions: Most tokens of a source; training leaves longer ones out.
        max_target_positions: The same of a target.
        train_split: Name of the split to train on, in data with names of their own.
        val_split: Name of the split to validate on.
        test_split: Name of the split to test on.
        limit: At most this many pairs per split, drawn by `split_seed`; null is all.
        num_workers: Worker processes that read and pad.
        seed: Of the order.
        split_seed: Of `limit`; null is `seed`.

    Raises:
        ValueError: A value is out of range or a language unknown; from `setup`, the data are bad.
    """

    preprocessor_class = TextPreprocessor
    fixed_arguments = ("source_lang", "target_lang", "lowercase", "bpe_merges", "joined_dictionary")

    def __init__(
        self,
        path: str | None,
        source_lang: str,
        target_lang: str,
        max_tokens: int,
        batch_size: int | None = None,
        batch_size_multiple: int = 1,
        lowercase: bool = False,
        bpe_merges: int | None = None,
        joined_dictionary: bool = True,
        max_source_positions: int = 1024,
        max_target_positions: int = 1024,
        train_split: str = "train",
        val_split: str = "validation",
        test_split: str = "test",
        limit: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        split_seed: int | None = None,
    ) -> None:
        super().__init__()
        at_least_one = {
            "max_tokens": max_tokens,
            "batch_size": batch_size,
            "batch_size_multiple": batch_size_multiple,
            "bpe_merges": bpe_merges,
            "max_source_positions": max_source_positions,
            "max_target_positions": max_target_positions,
            "limit": limit,
        }
        for name, value in at_least_one.items():
            if value is not None and value < 1:
                raise ValueError(f"data.{name}={value} must be at least 1")
        if split_seed is not None and split_seed < 0:
            raise ValueError(f"data.split_seed={split_seed} must be at least 0")
        for name, code in {"source_lang": source_lang, "target_lang": target_lang}.items():
            check_language(code, f"data.{name}")
        if source_lang == target_lang:
            raise ValueError(f"data.source_lang and data.target_lang are both {source_lang!r}")
        self.path, self.languages = path, (source_lang, target_lang)
        self.max_tokens, self.batch_size, self.batch_size_multiple = max_tokens, batch_size, batch_size_multiple
        self.lowercase, self.bpe_merges, self.joined_dictionary = lowercase, bpe_merges, joined_dictionary
        self.max_source_positions, self.max_target_positions = max_source_positions, max_target_positions
        self.split_names = {"train": train_split, "val": val_split, "test": test_split}
        self.limit, self.num_workers = limit, num_workers
        self.seed, self.split_seed = seed, seed if split_seed is None else split_seed
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
                self._splits[name] = self._prepared.open_split(name, preprocessor, self.limit, self.split_seed)
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
        return text.select(draw_rows(len(text), self.limit, self.split_seed))

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
            rank=self.rank,
            world_size=self.world_size,
        )
        return BatchLoader(sampler, partial(load_batches, chosen.dataset, sampler, self.num_workers))

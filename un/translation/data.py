"""Parallel text for Lightning: splits, checks and resumable batches, from config."""

from functools import partial
from pathlib import Path
from typing import Any

from un.loading import BatchLoader, ResumableDataModule
from un.translation.batches import PairBatches, TokenSampler
from un.translation.corpus import Corpus, SplitTexts
from un.translation.prepared import PreparedFolder, is_prepared
from un.translation.sources import ParallelText, draw_rows, generate_texts, read_texts
from un.translation.text import TextCodec, check_language
from un.translation.vocabulary import encode_texts

GENERATED_PAIRS = 64  # ours: of each split for `path: null`, where `limit` gives none


class TranslationDataModule(ResumableDataModule):
    """Train, validation and test sentence pairs.

    Args:
        path: `phrasebook`, a hub id, or a local folder: of fairseq's binary files (then what concerns words and
            subwords is as they were made), of two text files per split, or of a data set with a column per language.
            Null: a few phrasebook sentences.
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
        ValueError: A value out of range or an unknown language; from `setup`, bad data.
    """

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
        self._corpus: Corpus | None = None

    def setup(self, stage: str | None = None) -> None:
        """Read, check and encode all splits, once."""
        if self._corpus is not None:
            return
        if self.path is not None and is_prepared(self.path, self.languages):
            folder = PreparedFolder(Path(self.path), self.languages, self.lowercase)
            self._corpus = folder.read(self.limit, self.split_seed)
            return
        self._corpus = encode_texts(
            self._read(),
            self.languages,
            lowercase=self.lowercase,
            merges=self.bpe_merges,
            joined=self.joined_dictionary,
        )

    def _read(self) -> dict[str, ParallelText]:
        if self.path is None:
            return generate_texts(self.languages, dict.fromkeys(self.split_names, self.limit or GENERATED_PAIRS))
        texts = read_texts(self.path, self.languages, self.split_names)
        texts["train"] = texts["train"].drop_empty()
        return {name: text.select(draw_rows(len(text), self.limit, self.split_seed)) for name, text in texts.items()}

    @property
    def corpus(self) -> Corpus:
        """All splits, encoded."""
        self.setup()
        assert self._corpus is not None, "set up"
        return self._corpus

    @property
    def codec(self) -> TextCodec:
        """Between text and ids."""
        return self.corpus.codec

    def model_arguments(self) -> dict[str, Any]:
        """Return what the data decide about a model: `source_dictionary` and `target_dictionary`."""
        corpus = self.corpus
        return {"source_dictionary": corpus.source_dictionary, "target_dictionary": corpus.target_dictionary}

    def texts(self, split: str) -> SplitTexts:
        """Return the texts of `train`, `val` or `test`, by the `id` in the batches of its loader."""
        return self.corpus.splits[self.name_loaded(split)].texts

    def make_loader(self, split: str, training: bool) -> BatchLoader:
        """Return a loader of one split."""
        chosen = self.corpus.splits[split]
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
        batches = PairBatches(chosen.dataset, self.num_workers)
        return BatchLoader(sampler, partial(batches.make_batches, sampler))

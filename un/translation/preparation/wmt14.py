"""WMT14 English-German from the published corpora, as fairseq's example or as PowerNorm's.

The set that Google preprocessed has a module of its own.
"""

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from un.translation.preparation.archives import extract
from un.translation.preparation.corpora import (
    CODES,
    Languages,
    apply_codes,
    clean_pairs,
    divide_training,
    keep_pairs,
    learn_codes,
    map_splits,
    name_pair,
)
from un.translation.preparation.lines import read_lines, read_parallel, write_lines, write_tables
from un.translation.preparation.sentences import (
    Limits,
    map_apostrophe,
    normalize_and_tokenize,
    read_segments,
    tokenize,
)
from un.translation.preparation.steps import Counts, Steps, compute_checksum

LANGUAGES: Languages = ("en", "de")
SERVER = "https://www.statmt.org"
URLS = {
    "training-parallel-europarl-v7.tgz": f"{SERVER}/wmt13/training-parallel-europarl-v7.tgz",
    "training-parallel-commoncrawl.tgz": f"{SERVER}/wmt13/training-parallel-commoncrawl.tgz",
    "training-parallel-nc-v12.tgz": "https://data.statmt.org/wmt17/translation-task/training-parallel-nc-v12.tgz",
    "training-parallel-nc-v9.tgz": f"{SERVER}/wmt14/training-parallel-nc-v9.tgz",
    "dev.tgz": "https://data.statmt.org/wmt17/translation-task/dev.tgz",
    "test-full.tgz": f"{SERVER}/wmt14/test-full.tgz",
}
# The training text is their concatenation in this order; the last name gets its version.
CORPORA = ("europarl-v7.de-en", "commoncrawl.de-en", "news-commentary-{}.de-en")
TEST_FILES = {"en": "newstest2014-deen-src.en.sgm", "de": "newstest2014-deen-ref.de.sgm"}
VALIDATION = "newstest2013"
VERSIONS = ("v12", "v9")


@dataclass(frozen=True)
class Recipe:
    """Where the sources differ.

    Args:
        merges: byte-pair merges.
        every: every n-th training pair is validation, before cleaning; null takes newstest2013.
        limits: of the cleaning.
        counts_subwords: whether the limits are in subwords and hold for validation too; else in words, for training.
    """

    merges: int
    every: int | None
    limits: Limits
    counts_subwords: bool


RECIPES = {
    "fairseq": Recipe(40000, every=100, limits=Limits(shortest=1, longest=250, ratio=1.5), counts_subwords=True),
    # PowerNorm states lengths only; the ratio is Moses' default.
    "powernorm": Recipe(32764, every=None, limits=Limits(shortest=1, longest=80), counts_subwords=False),
}


@dataclass(frozen=True)
class Options:
    """What a user may choose.

    Args:
        recipe: "fairseq" or "powernorm".
        news_commentary: "v12", or "v9" for what was there in 2014.
        merges: byte-pair merges; null for the recipe's.

    Raises:
        ValueError: a value outside these.
    """

    recipe: str = "fairseq"
    news_commentary: str = "v12"
    merges: int | None = None

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise ValueError(f"recipe must be {' or '.join(RECIPES)}, got {self.recipe!r}")
        if self.news_commentary not in VERSIONS:
            raise ValueError(f"news-commentary must be {' or '.join(VERSIONS)}, got {self.news_commentary!r}")
        if self.merges is not None and self.merges < 1:
            raise ValueError(f"merges must be at least 1, got {self.merges}")

    def list_archives(self) -> list[str]:
        """Returns the names of the archives needed; those of training first."""
        needless = "training-parallel-nc-v9.tgz" if self.news_commentary == "v12" else "training-parallel-nc-v12.tgz"
        without_dev = RECIPES[self.recipe].every is not None
        return [name for name in URLS if name != needless and not (name == "dev.tgz" and without_dev)]


def prepare(archives: Path, output: Path, options: Options, workers: int = 1) -> Path:
    """Runs all steps from the published archives to a folder for `data=wmt14_en_de`.

    Args:
        archives: folder with the archives under their published names.
        output: folder to make; intermediate steps stay in `<output>.steps`.
        options: the recipe.
        workers: processes.

    Raises:
        ValueError: an archive is missing or not what it should be, or `output` is something else already.
    """
    paths = [archives / name for name in options.list_archives()]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise ValueError(f"no archive {missing[0]}; fetch {URLS[missing[0].name]} or use --download")
    steps = make_steps(output, {path.name: compute_checksum(path) for path in paths})
    validation = [f"{VALIDATION}.{language}" for language in LANGUAGES]
    corpora = [name.format(options.news_commentary) for name in CORPORA]
    names = [f"{corpus}.{language}" for corpus in corpora for language in LANGUAGES] + list(TEST_FILES.values())
    names += [] if RECIPES[options.recipe].every else validation

    def unpack(folder: Path) -> Counts:
        extract(paths, names, folder)
        return {"files": len(names)}

    unpacked = steps.run("1-unpacked", {"files": names}, unpack)
    text = steps.run("2-text", {}, lambda folder: read_text(unpacked, folder, corpora))
    return prepare_text(steps, text, output, options, {"news_commentary": options.news_commentary}, workers)


def make_steps(output: Path, inputs: dict[str, Any]) -> Steps:
    """Returns the steps of a product."""
    return Steps(output.with_name(f"{output.name}.steps"), inputs)


def read_text(unpacked: Path, folder: Path, corpora: list[str]) -> Counts:
    """Joins the training corpora; takes the evaluation text out of its markup, otherwise as published."""
    counts = {}
    for language in LANGUAGES:
        train = chain.from_iterable(read_lines(unpacked / f"{corpus}.{language}") for corpus in corpora)
        counts[f"train.{language}"] = write_lines(folder / f"train.{language}", train)
        test = read_segments(read_lines(unpacked / TEST_FILES[language]))
        counts[f"test.{language}"] = write_lines(folder / f"test.{language}", test)
        valid = unpacked / f"{VALIDATION}.{language}"
        if valid.is_file():
            counts[f"valid.{language}"] = write_lines(folder / f"valid.{language}", read_lines(valid))
    return counts


def prepare_text(
    steps: Steps, text: Path, output: Path, options: Options, source: dict[str, Any], workers: int
) -> Path:
    """Runs the steps that follow once the text is there.

    Args:
        steps: those before have run.
        text: folder with `train` and `test`, and `valid` if the recipe holds none out.
        output: folder to make.
        options: the recipe.
        source: goes into the record.
        workers: processes.
    """
    recipe = RECIPES[options.recipe]
    merges = options.merges or recipe.merges
    evaluation = ["test"] if recipe.every else ["valid", "test"]
    tokens = steps.run("3-tokens", {}, lambda folder: tokenize_text(text, folder, ["train", *evaluation], workers))
    divided = steps.run(
        "4-divided",
        {"recipe": options.recipe, "every": recipe.every, **asdict(recipe.limits)},
        lambda folder: divide_text(tokens, text, folder, recipe),
    )
    learned = steps.run(
        "5-merges",
        {"merges": merges},
        lambda folder: learn_codes([*name_pair(divided, "train", LANGUAGES)], folder, merges),
    )
    splits = {"train": divided, "valid": divided if recipe.every else tokens, "test": tokens}
    subwords = steps.run(
        "6-subwords", {}, lambda folder: apply_codes(splits, learned / CODES, folder, LANGUAGES, workers)
    )
    final, raw = dict.fromkeys(splits, subwords), {"valid": text, "test": text}
    if recipe.every:
        raw["valid"] = divided / "raw"
    if recipe.counts_subwords:
        keep = recipe.limits.accept
        clean = steps.run(
            "7-clean",
            asdict(recipe.limits),
            lambda folder: clean_pairs(subwords, raw["valid"], folder, LANGUAGES, keep),
        )
        final |= {"train": clean, "valid": clean}
        raw["valid"] = clean / "raw"
    record = describe({"recipe": options.recipe, **source, "merges": merges}, split_hyphens=True)
    return steps.finish(
        output, record, lambda folder: binarize_text(final, raw, learned / CODES, folder, workers=workers)
    )


def tokenize_text(text: Path, folder: Path, splits: list[str], workers: int) -> Counts:
    """Moses tokens with hyphens split; only the training text has its punctuation normalised before."""

    def choose(split: str, language: str) -> Callable[[str], str]:
        return functools.partial(normalize_and_tokenize if split == "train" else tokenize_evaluation, language=language)

    return map_splits(dict.fromkeys(splits, text), folder, LANGUAGES, choose, workers)


def tokenize_evaluation(line: str, language: str) -> str:
    """Returns the tokens of a line of an evaluation set."""
    return tokenize(map_apostrophe(line), language, split_hyphens=True)


def divide_text(tokens: Path, text: Path, folder: Path, recipe: Recipe) -> Counts:
    """Holds validation out of the training text (fairseq), or drops its bad pairs (PowerNorm)."""
    if recipe.every:
        return divide_training(tokens, text, folder, LANGUAGES, recipe.every)
    pairs = keep_pairs(read_parallel(*name_pair(tokens, "train", LANGUAGES)), recipe.limits.accept)
    return {"train": write_tables(name_pair(folder, "train", LANGUAGES), pairs)}


def describe(choices: dict[str, Any], split_hyphens: bool) -> dict[str, Any]:
    """Returns what a reader of the prepared folder has to know."""
    return {
        "data": "wmt14_en_de",
        "source_lang": LANGUAGES[0],
        "target_lang": LANGUAGES[1],
        "lowercase": False,
        "split_hyphens": split_hyphens,
        "dictionary": "joined",
        **choices,
    }


def binarize_text(
    text: dict[str, Path], raw: dict[str, Path], codes: Path, folder: Path, *, words: int = -1, workers: int = 1
) -> Counts:
    """The last step: the product."""
    from un.translation.preparation.binarization import binarize, copy_codes, copy_raw  # imports fairseq

    counts = binarize(text, folder, LANGUAGES, words=words, workers=workers)
    copy_raw(raw, text, folder, LANGUAGES)
    if codes.is_file():
        copy_codes(codes, folder)
    return counts

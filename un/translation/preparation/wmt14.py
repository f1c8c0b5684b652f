"""WMT14 English-German: from the published corpora, from rows of the hub, or from the set Google preprocessed.

Corpora and rows are prepared as in fairseq's example or as for PowerNorm; Google's set is only binarised.
"""

from dataclasses import replace
from itertools import chain
from pathlib import Path

import datasets

from un.datasets import read_splits, require_split
from un.translation.preparation.archives import extract
from un.translation.preparation.lines import RAW, name_files, read_lines, write_lines, write_rows
from un.translation.preparation.pipeline import Recipe, finish, prepare_text
from un.translation.preparation.sentences import Limits, read_segments
from un.translation.preparation.steps import Counts, Steps, compute_checksum
from un.translation.sources import read_column

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
NEWS_COMMENTARY = ("v12", "v9")  # v9 is what was there in 2014
TEST_FILES = {"en": "newstest2014-deen-src.en.sgm", "de": "newstest2014-deen-ref.de.sgm"}
VALIDATION = "newstest2013"

FAIRSEQ = Recipe(
    name="fairseq",
    data="wmt14_en_de",
    languages=("en", "de"),
    merges=40000,
    every=100,
    subword_limits=Limits(shortest=1, longest=250, ratio=1.5),
    normalize=True,
    split_hyphens=True,
)
POWERNORM = replace(
    FAIRSEQ,
    name="powernorm",
    merges=32764,
    every=None,
    word_limits=Limits(shortest=1, longest=80),  # PowerNorm states lengths only; the ratio is Moses' default
    subword_limits=None,
)
RECIPES = {recipe.name: recipe for recipe in (FAIRSEQ, POWERNORM)}

# fairseq's page on scaling names this place; a browser gets it, a program has to confirm a size warning.
GOOGLE_URL = "https://drive.google.com/uc?export=download&id=0B_bZck-ksdkpM25jRUN2X2UxMm8"
GOOGLE_RECIPE = Recipe(
    name="google",
    data=FAIRSEQ.data,
    languages=FAIRSEQ.languages,
    merges=32000,
    words=32768,  # as fairseq
    split_last_period=False,  # Google's tokens are of 2017
)
GOOGLE_CODES = "bpe.32000"
GOOGLE_TEXT = {
    "train": "train.tok.clean.bpe.32000",
    "valid": "newstest2013.tok.bpe.32000",
    "test": "newstest2014.tok.bpe.32000",
}
GOOGLE_RAW = {f"{RAW}/valid": "newstest2013", f"{RAW}/test": "newstest2014"}  # not in every copy of the archive
HUB_CONFIG = "de-en"
HUB_SPLITS = {"train": "train", "valid": "validation", "test": "test"}


def list_archives(recipe: Recipe, news_commentary: str) -> list[str]:
    """Returns the names of the archives that a recipe needs, those of training first."""
    other = next(version for version in NEWS_COMMENTARY if version != news_commentary)
    needless = {f"training-parallel-nc-{other}.tgz", *(["dev.tgz"] if recipe.every else [])}
    return [archive for archive in URLS if archive not in needless]


def prepare(
    archives: Path, output: Path, recipe: Recipe = FAIRSEQ, news_commentary: str = "v12", workers: int = 1
) -> Path:
    """Runs all steps from the published archives to a folder for `data=wmt14_en_de`.

    Args:
        archives: Folder with the archives under their published names.
        output: Folder to make; intermediate steps stay in `<output>.steps`.
        recipe: One of `RECIPES`, perhaps with other merges.
        news_commentary: Version of this corpus, one of `NEWS_COMMENTARY`.
        workers: Processes.

    Raises:
        ValueError: An archive is missing or not what it should be, or `output` is something else already.
    """
    paths = [archives / name for name in list_archives(recipe, news_commentary)]
    for path in paths:
        if not path.is_file():
            raise ValueError(f"no archive {path}; get {URLS[path.name]} or use --download")
    corpora = [name.format(news_commentary) for name in CORPORA]
    names = [f"{corpus}.{language}" for corpus in corpora for language in recipe.languages]
    names += TEST_FILES.values()
    names += [] if recipe.every else [f"{VALIDATION}.{language}" for language in recipe.languages]

    def read_text(folder: Path) -> Counts:
        counts = {}
        for language in recipe.languages:
            split_lines = {
                "train": chain.from_iterable(read_lines(unpacked / f"{corpus}.{language}") for corpus in corpora),
                "valid": read_lines(unpacked / f"{VALIDATION}.{language}"),
                "test": read_segments(read_lines(unpacked / TEST_FILES[language])),
            }
            for split in recipe.given_splits:
                counts[f"{split}.{language}"] = write_lines(folder / f"{split}.{language}", split_lines[split])
        return counts

    steps = Steps(output, {path.name: compute_checksum(path) for path in paths})
    unpacked = steps.run("1-unpacked", {"files": names}, lambda folder: extract(paths, names, folder))
    text = steps.run("2-text", {}, read_text)
    return prepare_text(steps, text, recipe, {"news_commentary": news_commentary}, workers)


def prepare_google(archive: Path, output: Path, recipe: Recipe = GOOGLE_RECIPE, workers: int = 1) -> Path:
    """Binarises wmt16_en_de.tar.gz, which is tokenised and in subwords already.

    Raises:
        ValueError: The archive is missing or not what it should be, or `output` is something else already.
    """
    if not archive.is_file():
        raise ValueError(f"no archive {archive}; get it with a browser from {GOOGLE_URL}")

    def list_names(stems: dict[str, str]) -> dict[str, str]:
        return {f"{split}.{lang}": f"{stem}.{lang}" for split, stem in stems.items() for lang in recipe.languages}

    names, raw = list_names(GOOGLE_TEXT), list_names(GOOGLE_RAW)

    def rename(folder: Path) -> Counts:
        found = names | {name: file for name, file in raw.items() if (unpacked / file).is_file()}
        return {name: write_lines(folder / name, read_lines(unpacked / file)) for name, file in found.items()}

    steps = Steps(output, {archive.name: compute_checksum(archive)})
    optional = (GOOGLE_CODES, *raw.values())
    unpacked = steps.run("1-unpacked", {}, lambda folder: extract([archive], [*names.values()], folder, optional))
    text = steps.run("2-text", {}, rename)
    return finish(steps, text, unpacked / GOOGLE_CODES, recipe, {"words": recipe.words}, workers)


def prepare_hub(path: str, output: Path, recipe: Recipe = FAIRSEQ, workers: int = 1) -> Path:
    """Runs all steps from a data set of rows, such as wmt/wmt14, whose news commentary is v9.

    Its order of the corpora is its own, so that fairseq's recipe holds other pairs out than from the archives.

    Args:
        path: Hub id, or a local folder that `datasets` can read.
        output: Folder to make.
        recipe: One of `RECIPES`, perhaps with other merges.
        workers: Processes.

    Raises:
        ValueError: The data set cannot be read or lacks a split or a column.
    """
    source = load_rows(path)
    splits = {split: require_split(source, path, HUB_SPLITS[split]) for split in recipe.given_splits}

    def write_text(folder: Path) -> Counts:
        counts = {}
        for split, found in splits.items():
            sides = [read_column(source[found], language, f"{found} of {path}") for language in recipe.languages]
            rows = (tuple(side.replace("\n", " ") for side in pair) for pair in zip(*sides, strict=True))
            counts[split] = write_rows(name_files(folder, split, recipe.languages), rows)
        return counts

    versions = {name: split._fingerprint for name, split in source.items()}  # changes with the data
    steps = Steps(output, {"hub": path, **versions})
    text = steps.run("2-text", {"splits": list(splits)}, write_text)
    return prepare_text(steps, text, recipe, {"hub": path}, workers)


def load_rows(path: str) -> datasets.DatasetDict:
    """Returns all splits of a data set."""
    try:
        return read_splits(path, [HUB_CONFIG])
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is neither a folder nor a hub id that can be read ({reason})") from error

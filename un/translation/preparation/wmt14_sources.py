"""WMT14 from elsewhere: the set Google preprocessed, and rows of the Hugging Face hub."""

from pathlib import Path

import datasets

from un.datasets import read_splits, require_split
from un.translation.preparation.archives import extract
from un.translation.preparation.lines import RAW, name_files, read_lines, write_lines, write_rows
from un.translation.preparation.pipeline import Recipe, finish, prepare_text
from un.translation.preparation.steps import Counts, Steps, compute_checksum
from un.translation.preparation.wmt14 import FAIRSEQ
from un.translation.sources import read_column

# fairseq's page on scaling names this place; a browser gets it, a program has to confirm a size warning.
GOOGLE_URL = "https://drive.google.com/uc?export=download&id=0B_bZck-ksdkpM25jRUN2X2UxMm8"
GOOGLE_RECIPE = Recipe(
    name="google",
    data=FAIRSEQ.data,
    languages=FAIRSEQ.languages,
    merges=32000,
    words=32768,  # as fairseq
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
        recipe: One of `wmt14.RECIPES`, perhaps with other merges.
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

"""WMT14 from elsewhere: the set Google preprocessed, and rows of the Hugging Face hub."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from un.translation.preparation.archives import extract
from un.translation.preparation.lines import read_lines, write_lines, write_tables
from un.translation.preparation.steps import Counts, compute_checksum
from un.translation.preparation.wmt14 import (
    LANGUAGES,
    RECIPES,
    Options,
    binarize_text,
    describe,
    make_steps,
    prepare_text,
)

# fairseq's page on scaling names this place; a browser gets it, a program has to confirm a size warning.
GOOGLE_URL = "https://drive.google.com/uc?export=download&id=0B_bZck-ksdkpM25jRUN2X2UxMm8"
GOOGLE_TEXT = {
    "train": "train.tok.clean.bpe.32000",
    "valid": "newstest2013.tok.bpe.32000",
    "test": "newstest2014.tok.bpe.32000",
}
GOOGLE_RAW = {"valid": "newstest2013", "test": "newstest2014"}
GOOGLE_CODES = "bpe.32000"
GOOGLE_WORDS = 32768  # most dictionary entries, as fairseq
HUB_CONFIG = "de-en"
HUB_SPLITS = {"train": "train", "valid": "validation", "test": "test"}
ROWS_AT_ONCE = 1000


def prepare_google(archive: Path, output: Path, workers: int = 1) -> Path:
    """Binarises wmt16_en_de.tar.gz, which is tokenised and in subword units already.

    Args:
        archive: the file.
        output: folder to make.
        workers: processes.

    Raises:
        ValueError: the archive is missing or not what it should be, or `output` is something else already.
    """
    if not archive.is_file():
        raise ValueError(f"no archive {archive}; fetch it with a browser from {GOOGLE_URL}")
    steps = make_steps(output, {archive.name: compute_checksum(archive)})
    unpacked = steps.run("1-unpacked", {}, lambda folder: unpack_google(archive, folder))
    text = steps.run("2-text", {}, lambda folder: name_google(unpacked, folder))
    splits = dict.fromkeys(GOOGLE_TEXT, text)
    raw = {split: text / "raw" for split in GOOGLE_RAW if (text / "raw" / f"{split}.{LANGUAGES[0]}").is_file()}
    record = describe({"recipe": "google", "words": GOOGLE_WORDS}, split_hyphens=False)
    codes = unpacked / GOOGLE_CODES
    return steps.finish(
        output,
        record,
        lambda folder: binarize_text(splits, raw, codes, folder, words=GOOGLE_WORDS, workers=workers),
    )


def unpack_google(archive: Path, folder: Path) -> Counts:
    """Takes the text and, where it is there, the untokenised evaluation text and the merges out."""
    names = [f"{name}.{language}" for name in GOOGLE_TEXT.values() for language in LANGUAGES]
    raw = [f"{name}.{language}" for name in GOOGLE_RAW.values() for language in LANGUAGES]
    extract([archive], names, folder, optional=(GOOGLE_CODES, *raw))
    return {"files": len(list(folder.iterdir()))}


def name_google(unpacked: Path, folder: Path) -> Counts:
    """Copies the files to the names of splits."""
    counts = {}
    for split, name in GOOGLE_TEXT.items():
        for language in LANGUAGES:
            lines = read_lines(unpacked / f"{name}.{language}")
            counts[f"{split}.{language}"] = write_lines(folder / f"{split}.{language}", lines)
    for split, name in GOOGLE_RAW.items():
        paths = {language: unpacked / f"{name}.{language}" for language in LANGUAGES}
        if all(path.is_file() for path in paths.values()):
            for language, path in paths.items():
                write_lines(folder / "raw" / f"{split}.{language}", read_lines(path))
    return counts


def prepare_hub(path: str, output: Path, options: Options, workers: int = 1) -> Path:
    """Runs all steps from a data set of rows, such as wmt/wmt14, whose news commentary is v9.

    Its order of the corpora is its own, so that fairseq's recipe holds other pairs out than from the archives.

    Args:
        path: hub id, or a local folder that `datasets` can read.
        output: folder to make.
        options: the recipe; its version of the news commentary does not matter.
        workers: processes.

    Raises:
        ValueError: the data set cannot be read or lacks a split or a column.
    """
    source = load_rows(path)
    splits = ["train", "test"] if RECIPES[options.recipe].every else ["train", "valid", "test"]
    for split in splits:
        if HUB_SPLITS[split] not in source:
            raise ValueError(f"no split {HUB_SPLITS[split]!r} in {path}; there are {', '.join(source)}")
    versions = {name: split._fingerprint for name, split in source.items()}  # changes with the data
    steps = make_steps(output, {"hub": path, **versions})
    text = steps.run("2-text", {"splits": splits}, lambda folder: write_rows(source, splits, folder))
    return prepare_text(steps, text, output, options, {"hub": path}, workers)


def load_rows(path: str) -> datasets.DatasetDict:
    """Returns all splits of a data set."""
    try:
        return datasets.load_dataset(path) if Path(path).is_dir() else datasets.load_dataset(path, HUB_CONFIG)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is neither a folder nor a hub id that can be read ({reason})") from error


def write_rows(source: datasets.DatasetDict, splits: list[str], folder: Path) -> Counts:
    """Writes rows as lines; a line feed inside a sentence becomes a space."""
    counts = {}
    for split in splits:
        paths = [folder / f"{split}.{language}" for language in LANGUAGES]
        counts[split] = write_tables(paths, read_rows(source[HUB_SPLITS[split]], HUB_SPLITS[split]))
    return counts


def read_rows(dataset: datasets.Dataset, title: str) -> Iterator[tuple[str, ...]]:
    """Yields source and target of every row of the columns `translation`, or `en` and `de`."""
    columns = dataset.column_names
    if "translation" not in columns and not set(LANGUAGES) <= set(columns):
        raise ValueError(f"no column 'translation' (nor 'en' and 'de') in {title}; there are {', '.join(columns)}")
    batches: Iterator[dict[str, Any]] = dataset.iter(ROWS_AT_ONCE)
    for batch in batches:
        if "translation" in batch:
            rows = [[pair[language] for language in LANGUAGES] for pair in batch["translation"]]
        else:
            rows = [list(row) for row in zip(*(batch[language] for language in LANGUAGES), strict=True)]
        for row in rows:
            yield tuple(sentence.replace("\n", " ") for sentence in row)

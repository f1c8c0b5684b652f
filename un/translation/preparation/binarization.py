"""The last step: fairseq's binary files, byte for byte those of `fairseq-preprocess`."""

import shutil
from pathlib import Path

from un.translation.fairseq_library import Dictionary, FileBinarizer, VocabularyDatasetBinarizer, tokenize_line
from un.translation.preparation.corpora import CODES, Languages, name_pair
from un.translation.preparation.lines import count_lines, read_parallel
from un.translation.preparation.steps import Counts
from un.translation.vocabulary import PADDING_FACTOR

SPLITS = ("train", "valid", "test")


def binarize(
    text: dict[str, Path], output: Path, languages: Languages, *, joined: bool = True, words: int = -1, workers: int = 1
) -> Counts:
    """Writes dictionaries and the `.bin`/`.idx` pairs of every split.

    Args:
        text: for each split the folder with its two files in subword units.
        output: receives the files.
        languages: source and target.
        joined: whether both sides share one dictionary, which sharing all embeddings needs.
        words: most entries of a dictionary, special symbols included; -1 for no limit.
        workers: processes; the result does not depend on them.

    Raises:
        ValueError: a split is empty, or its sides differ in length.
    """
    counts = {split: count_pairs(text[split], split, languages) for split in SPLITS}
    sides = {language: [text["train"] / f"train.{language}"] for language in languages}
    if joined:
        both = build_dictionary([path for paths in sides.values() for path in paths], words, workers)
        dictionaries = dict.fromkeys(languages, both)
    else:
        dictionaries = {language: build_dictionary(paths, words, workers) for language, paths in sides.items()}
    for language, dictionary in dictionaries.items():
        dictionary.save(str(output / f"dict.{language}.txt"))
        counts[f"types {language}"] = len(dictionary)
        for split in SPLITS:
            summary = FileBinarizer.multiprocess_dataset(
                str(text[split] / f"{split}.{language}"),
                "mmap",
                VocabularyDatasetBinarizer(dictionary, append_eos=True),
                str(output / f"{split}.{languages[0]}-{languages[1]}.{language}"),
                vocab_size=len(dictionary),
                num_workers=workers,
            )
            counts[f"tokens {split}.{language}"] = summary.num_tok
            counts[f"unknown {split}.{language}"] = summary.num_replaced
    return counts


def build_dictionary(texts: list[Path], words: int, workers: int) -> Dictionary:
    """Returns the words of some files by frequency."""
    dictionary = Dictionary()
    for path in texts:
        Dictionary.add_file_to_dictionary(str(path), dictionary, tokenize_line, workers)
    dictionary.finalize(nwords=words, padding_factor=PADDING_FACTOR)
    return dictionary


def count_pairs(folder: Path, split: str, languages: Languages) -> int:
    """Returns the number of pairs of a split after a check that there are some."""
    count = sum(1 for _ in read_parallel(*name_pair(folder, split, languages)))
    if not count:
        raise ValueError(f"{split} is empty after preparation ({name_pair(folder, split, languages)[0]})")
    return count


def copy_raw(raw: dict[str, Path], text: dict[str, Path], output: Path, languages: Languages) -> None:
    """Copies untokenised text to `raw/`, for scores on text as a reader sees it.

    Args:
        raw: for each split the folder with its two untokenised files.
        text: for each split the folder with the same lines in subword units.
        output: receives the folder `raw`.
        languages: source and target.

    Raises:
        ValueError: numbers of lines differ.
    """
    (output / "raw").mkdir()
    for split, folder in raw.items():
        for language in languages:
            name = f"{split}.{language}"
            lines, expected = count_lines(folder / name), count_lines(text[split] / name)
            if lines != expected:
                raise ValueError(f"{folder / name} has {lines:,} lines, {text[split] / name} {expected:,}")
            shutil.copyfile(folder / name, output / "raw" / name)


def copy_codes(codes: Path, output: Path) -> None:
    """Copies the merges, so that new text can be split alike."""
    shutil.copyfile(codes, output / CODES)

"""The last step: fairseq's binary files, byte for byte those of `fairseq-preprocess`."""

import shutil
from pathlib import Path

from un.translation.fairseq_library import FileBinarizer, VocabularyDatasetBinarizer
from un.translation.preparation.lines import RAW, SPLITS, Languages, name_files, read_lines, read_rows
from un.translation.preparation.steps import Counts
from un.translation.text import count_words
from un.translation.vocabulary import build_dictionary


def binarize(
    text: Path, output: Path, languages: Languages, *, joined: bool = True, words: int = -1, workers: int = 1
) -> Counts:
    """Writes dictionaries and the `.bin`/`.idx` pairs of every split, and copies the untokenised text there is.

    Args:
        text: Folder of `<split>.<language>` in subwords, and of `raw` where there is untokenised text.
        output: Receives the files.
        languages: Source and target.
        joined: Whether both sides share one dictionary, which sharing all embeddings needs.
        words: Maximum number of entries of a dictionary, special symbols included; -1 sets no limit.
        workers: Processes; the result does not depend on them.

    Raises:
        ValueError: A split is empty, or its files differ in length.
    """
    counts = {split: count_pairs(text, split, languages) for split in SPLITS}
    if (text / RAW).is_dir():
        shutil.copytree(text / RAW, output / RAW)
    pieces = [count_words(read_lines(path)) for path in name_files(text, "train", languages)]
    if joined:
        pieces = [pieces[0] + pieces[1]] * 2
    for language, side in zip(languages, pieces, strict=True):
        dictionary = build_dictionary(side, words=words)
        dictionary.save(str(output / f"dict.{language}.txt"))
        counts[f"types {language}"] = len(dictionary)
        for split in SPLITS:
            summary = FileBinarizer.multiprocess_dataset(
                str(text / f"{split}.{language}"),
                "mmap",
                VocabularyDatasetBinarizer(dictionary, append_eos=True),
                str(output / f"{split}.{languages[0]}-{languages[1]}.{language}"),
                vocab_size=len(dictionary),
                num_workers=workers,
            )
            counts[f"tokens {split}.{language}"] = summary.num_tok
            counts[f"unknown {split}.{language}"] = summary.num_replaced
    return counts


def count_pairs(text: Path, split: str, languages: Languages) -> int:
    """Returns the number of pairs of a split, after a check that there are some and that all its files agree."""
    paths = name_files(text, split, languages)
    raw = [path for path in name_files(text / RAW, split, languages) if path.is_file()]
    count = sum(1 for _ in read_rows(*paths, *raw))
    if not count:
        raise ValueError(f"{split} is empty after preparation ({paths[0]})")
    return count

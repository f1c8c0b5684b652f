"""Steps that every recipe uses, on folders of `<split>.<language>` files."""

import functools
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path

from subword_nmt.learn_bpe import learn_bpe

from un.translation.preparation.lines import (
    count_lines,
    map_lines,
    read_lines,
    read_parallel,
    write_lines,
    write_tables,
)
from un.translation.preparation.steps import Counts
from un.translation.text import Subwords

CODES = "bpe.codes"

Languages = tuple[str, str]
Keep = Callable[[str, str], bool]


def name_pair(folder: Path, split: str, languages: Languages) -> tuple[Path, Path]:
    """Returns the two files of a split."""
    return folder / f"{split}.{languages[0]}", folder / f"{split}.{languages[1]}"


def keep_all(source: str, target: str) -> bool:
    """Keeps every pair."""
    return True


def map_file(source: Path, target: Path, function: Callable[[str], str], workers: int) -> int:
    """Writes a file whose lines are a function of another's; returns their number."""
    return write_lines(target, map_lines(function, read_lines(source), workers))


def keep_pairs(rows: Iterator[tuple[str, ...]], keep: Keep) -> Iterator[tuple[str, ...]]:
    """Yields the rows whose first two entries, source and target tokens, pass."""
    return (row for row in rows if keep(row[0], row[1]))


def divide_training(
    tokens: Path,
    raw: Path,
    output: Path,
    languages: Languages,
    every: int,
    keep: Keep = keep_all,
    lowercase: bool = False,
) -> Counts:
    """Holds every n-th pair of the training text out for validation.

    Args:
        tokens: folder of the tokenised `train.<language>`.
        raw: folder of the same lines untokenised.
        output: receives `train` and `valid`, and the untokenised `raw/valid`.
        languages: source and target.
        every: pairs whose number, counted from 1 after `keep`, it divides become validation.
        keep: decides on a pair of tokenised lines; dropped pairs are not counted.
        lowercase: whether the tokenised text is lower-cased, after `keep` has seen it.
    """
    counts = {"pairs read": 0, "train": 0, "valid": 0}

    def divide() -> Iterator[tuple[str, ...]]:
        rows = read_parallel(*name_pair(tokens, "train", languages), *name_pair(raw, "train", languages))
        with_count = count_rows(rows, counts, "pairs read")
        for number, (*pair, raw_source, raw_target) in enumerate(keep_pairs(with_count, keep), 1):
            pair = [side.lower() for side in pair] if lowercase else pair
            if number % every == 0:
                held.append((*pair, raw_source, raw_target))
            else:
                yield tuple(pair)

    held: list[tuple[str, ...]] = []
    counts["train"] = write_tables(name_pair(output, "train", languages), divide())
    files = [*name_pair(output, "valid", languages), *name_pair(output / "raw", "valid", languages)]
    counts["valid"] = write_tables(files, held)
    return counts


def count_rows(rows: Iterator[tuple[str, ...]], counts: Counts, name: str) -> Iterator[tuple[str, ...]]:
    """Passes rows on and adds their number to a count."""
    for row in rows:
        counts[name] += 1
        yield row


def learn_codes(texts: list[Path], output: Path, merges: int) -> Counts:
    """Learns byte-pair merges on several files together, as `learn_bpe.py -s <merges>` on their concatenation."""
    with (output / CODES).open("w", encoding="utf-8", newline="\n") as file:
        try:
            learn_bpe(chain.from_iterable(map(read_lines, texts)), file, merges)
        except ValueError as error:  # max() of nothing: no word has two characters
            raise ValueError(f"nothing to learn merges from in {', '.join(map(str, texts))}") from error
    return {"merges": count_lines(output / CODES) - 1}  # the first line names the format


@functools.lru_cache
def load_codes(path: Path) -> Subwords:
    """Returns the merges of a file, read once per process."""
    return Subwords(path.read_text(encoding="utf-8"))


def split_words(line: str, codes: Path) -> str:
    """Returns a tokenised line in subword units."""
    return load_codes(codes).segment(line)


def apply_codes(text: Mapping[str, Path], codes: Path, output: Path, languages: Languages, workers: int) -> Counts:
    """Writes splits in subword units.

    Args:
        text: for each split the folder with its two tokenised files.
        codes: file of merges.
        output: receives `<split>.<language>`.
        languages: source and target.
        workers: processes.
    """
    load_codes.cache_clear()  # the file may be another than at the last call
    function = functools.partial(split_words, codes=codes)
    return map_splits(text, output, languages, lambda split, language: function, workers)


def map_splits(
    text: Mapping[str, Path],
    output: Path,
    languages: Languages,
    choose: Callable[[str, str], Callable[[str], str]],
    workers: int,
) -> Counts:
    """Writes both files of some splits; `choose(split, language)` is what happens to their lines."""
    counts = {}
    for split, folder in text.items():
        for language in languages:
            name = f"{split}.{language}"
            counts[name] = map_file(folder / name, output / name, choose(split, language), workers)
    return counts


def clean_pairs(text: Path, raw: Path, output: Path, languages: Languages, keep: Keep) -> Counts:
    """Drops pairs of `train` and `valid`; the untokenised validation text loses the same lines.

    Args:
        text: folder with `train` and `valid`.
        raw: folder with `valid` untokenised.
        output: receives the pairs kept, and `raw/valid`.
        languages: source and target.
        keep: decides on a pair.
    """
    counts = {"train read": 0, "valid read": 0}
    train = count_rows(read_parallel(*name_pair(text, "train", languages)), counts, "train read")
    counts["train"] = write_tables(name_pair(output, "train", languages), keep_pairs(train, keep))
    files = [*name_pair(text, "valid", languages), *name_pair(raw, "valid", languages)]
    valid = count_rows(read_parallel(*files), counts, "valid read")
    files = [*name_pair(output, "valid", languages), *name_pair(output / "raw", "valid", languages)]
    counts["valid"] = write_tables(files, keep_pairs(valid, keep))
    return counts

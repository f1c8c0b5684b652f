"""Folders of fairseq's binary files, as `fairseq-preprocess` and the preparation scripts write them."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from un.translation.corpus import Split, SplitTexts, make_dataset
from un.translation.fairseq_library import LanguagePairDataset, data_utils, indexed_dataset
from un.translation.preparation.lines import RAW, name_files, read_rows
from un.translation.preprocessor import SETTINGS, TextPreprocessor, name_dictionary
from un.translation.sources import draw_rows
from un.translation.text import detokenize, join_pieces

FILE_NAMES = {"train": "train", "val": "valid", "test": "test"}


def is_prepared(path: str, languages: tuple[str, str]) -> bool:
    """Tells whether a path is such a folder."""
    return any(name_dictionary(Path(path), language).is_file() for language in languages)


@dataclass(frozen=True)
class PreparedFolder:
    """A folder with `dict.<language>.txt` and `<split>.<source>-<target>.<language>.bin` and `.idx`.

    Args:
        folder: The folder; the names may have the languages in either order.
        languages: Codes of source and target.
    """

    folder: Path
    languages: tuple[str, str]

    def read_preprocessor(self, lowercase: bool) -> TextPreprocessor:
        """Returns the vocabulary that the sentences were made with.

        Args:
            lowercase: Whether the text is lower-cased, where no `preparation.json` says so.
        """
        return TextPreprocessor.read(self.folder, self.languages, {"codes": None, "lowercase": lowercase})

    def open_split(self, name: str, preprocessor: TextPreprocessor, limit: int | None, seed: int) -> Split:
        """Opens a split; sentences stay on disk until they are needed, unless there is a limit.

        Args:
            name: `train`, `val` or `test`.
            preprocessor: Whose ids the sentences must hold.
            limit: At most this many pairs, drawn by `seed`; null is all.
            seed: See `limit`.

        Raises:
            ValueError: A file is missing or damaged, or the folder was made with another vocabulary.
        """
        self._check_preprocessor(preprocessor)
        file_name, dictionaries = FILE_NAMES[name], preprocessor.dictionaries
        source, target = self._open_sides(file_name)
        rows, num_rows = draw_rows(len(source), limit, seed), len(source)
        if len(rows) < num_rows:
            source, target = ([side[row] for row in rows] for side in (source, target))
            dataset = make_dataset(source, target, *dictionaries)
        else:
            sizes = source.sizes, target.sizes
            dataset = LanguagePairDataset(source, sizes[0], dictionaries[0], target, sizes[1], dictionaries[1])
        make_texts = partial(self._read_texts, file_name, rows, num_rows, dataset, preprocessor)
        return Split(f"{file_name} of {self.folder}", dataset, make_texts, rows)

    def _check_preprocessor(self, preprocessor: TextPreprocessor) -> None:
        unstated = {name: getattr(preprocessor, name) for name in ("codes", *SETTINGS)}
        difference = TextPreprocessor.read(self.folder, self.languages, unstated).explain_difference(preprocessor)
        if difference:
            raise ValueError(f"{self.folder} was prepared with another vocabulary than the model's ({difference})")

    def _open_sides(self, split: str) -> list[Any]:
        directions = [f"{split}.{one}-{other}." for one, other in (self.languages, self.languages[::-1])]
        for prefix in directions:
            paths = [f"{self.folder / prefix}{language}" for language in self.languages]
            if all(indexed_dataset.dataset_exists(path, impl=None) for path in paths):
                break
        else:
            raise ValueError(f"{self.folder} has no split {split}: neither {directions[0]}* nor {directions[1]}*")
        sides = [open_side(path) for path in paths]
        if len(sides[0]) != len(sides[1]):
            raise ValueError(f"{paths[0]}.bin has {len(sides[0])} sentences and {paths[1]}.bin {len(sides[1])}")
        if not len(sides[0]):
            raise ValueError(f"{split} of {self.folder} is empty")
        return sides

    def _read_texts(
        self,
        split: str,
        rows: Sequence[int],
        num_rows: int,
        dataset: LanguagePairDataset,
        preprocessor: TextPreprocessor,
    ) -> SplitTexts:
        """Returns the untokenised texts of a split where the preparation kept them, otherwise what the ids tell."""
        source, target = (
            [join_pieces(dictionary, tokens, escape_unknown=True) for tokens in side]
            for side, dictionary in zip((dataset.src, dataset.tgt), preprocessor.dictionaries, strict=True)
        )
        paths = name_files(self.folder / RAW, split, self.languages)
        if not all(path.is_file() for path in paths):
            readable = [detokenize(line, self.languages[0]) for line in source]
            return SplitTexts(readable, [preprocessor.detokenize(line) for line in target], target)
        raw = list(read_rows(*paths))
        if len(raw) != num_rows:
            raise ValueError(f"{paths[0]} has {len(raw)} lines, the binary files of {split} {num_rows}")
        return SplitTexts([raw[row][0] for row in rows], [raw[row][1] for row in rows], target)


def open_side(path: str) -> Any:
    """Returns the sentences of `<path>.bin` and `.idx`, on disk."""
    hook, problem = sys.unraisablehook, None
    sys.unraisablehook = lambda _: None  # fairseq's half-opened files complain when they are closed
    try:
        sentences = data_utils.load_indexed_dataset(path)
        if len(sentences):
            sentences[len(sentences) - 1]  # shows whether the file is as long as its index says
    except Exception as error:  # of fairseq, numpy or mmap
        problem = " ".join(str(error).split())
    finally:
        sys.unraisablehook = hook
    if problem is not None:
        raise ValueError(f"{path}.bin or .idx is damaged ({problem})")
    return sentences

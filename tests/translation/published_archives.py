"""Small archives with the layout of the published ones, and the programs that prepare them."""

import io
import random
import runpy
import sys
import tarfile
from pathlib import Path

import pytest

from un.translation.preparation.lines import read_lines
from un.translation.prepared import PreparedFolder
from un.translation.vocabulary import encode_pieces

SCRIPTS = Path(__file__).parents[2] / "scripts"
GERMAN = "der die das Haus Baum Straße über grüne Käfer läuft schnell heute Morgen sieben Äpfel kaufen wollen"
ENGLISH = "the a house tree street over green beetle runs quickly today morning seven apples buy want have"
WORDS = {"de": GERMAN.split(" "), "en": ENGLISH.split(" ")}


def make_sentences(language: str, count: int, seed: int) -> list[str]:
    """Sentences of 5 to 9 words; the same seed gives the same lengths in every language."""
    lengths, words = random.Random(seed), random.Random(f"{language} {seed}")
    return [" ".join(words.choices(WORDS[language], k=lengths.randint(5, 9))) + "." for _ in range(count)]


def write_archive(path: Path, members: dict[str, str]) -> Path:
    """A tar archive, compressed as its name says, of UTF-8 texts by member name."""
    with tarfile.open(path, "w:gz") as archive:
        for name, text in members.items():
            content = text.encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def join(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def write_segments(sentences: list[str]) -> str:
    """An evaluation file: XML or SGML with one <seg> per sentence."""
    segments = [f'<seg id="{number}"> {sentence} </seg>' for number, sentence in enumerate(sentences, 1)]
    return join(['<?xml version="1.0"?>', '<doc docid="1">', "<title>a title</title>", *segments, "</doc>"])


def run_script(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(SCRIPTS / name), run_name="__main__")


def check_raw_text(product: Path, languages: tuple[str, str]) -> None:
    """The kept vocabulary makes of the untokenised test text, also with typographic apostrophes, what the ids hold."""
    prepared = PreparedFolder(product, languages)
    preprocessor = prepared.read_preprocessor(lowercase=False)
    dataset = prepared.open_split("test", preprocessor, None, 0).dataset
    for language, dictionary, side in zip(
        languages, preprocessor.dictionaries, (dataset.src, dataset.tgt), strict=True
    ):
        for line, expected in zip(read_lines(product / f"raw/test.{language}"), side, strict=True):
            words = preprocessor.split_words(line.replace("'", "’"), language)
            assert encode_pieces(preprocessor.split_pieces(words), dictionary).tolist() == expected.tolist()

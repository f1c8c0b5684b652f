"""Some lines of German and English, and the options of a small translator of them."""

from pathlib import Path

TEXT = ("experiment=phrasebook_tiny", "data=parallel_text", "data.source_lang=de", "data.target_lang=en")
TEXT += ("data.bpe_merges=40", "data.lowercase=true", "trainer=cpu", "trainer.max_epochs=1", "task.beam=1")
TEXT += ("model.encoder_layers=1", "task.max_len_b=8")


def write_text(folder: Path, word: str) -> Path:
    """Sentences of which all have their own words; those of the training split depend on `word`."""
    folder.mkdir(exist_ok=True)
    for split, count in (("train", 40), ("valid", 6), ("test", 6)):
        shift = word if split == "train" else "Hund"
        for language, verb in (("de", "sieht"), ("en", "sees")):
            lines = [f"{shift} {number} {verb} {shift[::-1]} {number % 7} ." for number in range(count)]
            (folder / f"{split}.{language}").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder

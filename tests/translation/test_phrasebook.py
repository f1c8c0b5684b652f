import string
from random import Random

import pytest

from un.translation import phrasebook, sources
from un.translation.phrasebook import ENGLISH, GERMAN, SENTENCES, SLOTS, generate_pairs
from un.translation.sources import PHRASEBOOK_COUNTS, generate_texts, read_text


def list_slots(sentence):
    return sorted(name for _, name, _, _ in string.Formatter().parse(sentence) if name)


def test_both_sides_of_a_sentence_tell_the_same_facts():
    used = set()
    for german, english in SENTENCES:
        assert list_slots(german) == list_slots(english)
        used.update(list_slots(german))
    assert used == set(SLOTS)


def test_every_fact_can_be_said_in_both_languages():
    random = Random(0)
    for name, slot in SLOTS.items():
        for fact in (slot.draw(random) for _ in range(20)):
            assert all(slot.render(fact, locale).strip() for locale in (GERMAN, ENGLISH)), name


def test_facts_agree():
    random, amount = Random(0), SLOTS["number"]
    for fact in (amount.draw(random) for _ in range(100)):
        german, english = amount.render(fact, GERMAN), amount.render(fact, ENGLISH)
        assert float(german.replace(".", "").replace(",", ".")) == float(english.replace(",", "")) == fact


@pytest.mark.parametrize("scale", [20, pytest.param(1, marks=pytest.mark.slow)])  # all are many to generate
def test_embedded_splits_share_no_sentence_and_are_large_enough(monkeypatch, scale):
    counts = {"test": 1000 // scale, "val": 1000 // scale, "train": 20_000 // scale}
    monkeypatch.setattr(sources, "PHRASEBOOK_COUNTS", {name: n // scale for name, n in PHRASEBOOK_COUNTS.items()})
    texts = {name: read_text("phrasebook", ("de", "en"), name, name) for name in counts}
    assert {name: len(text) for name, text in texts.items()} == counts
    for side in ("source", "target"):
        sentences = [sentence for text in texts.values() for sentence in getattr(text, side)]
        assert len(sentences) == len(set(sentences))
        assert all("\u00a0" not in sentence and "\u202f" not in sentence for sentence in sentences)


def test_english_source_turns_the_sentences_round():
    german, english = (generate_texts(pair, {"test": 5})["test"] for pair in (("de", "en"), ("en", "de")))
    assert (german.source, german.target) == (english.target, english.source)


def test_sentences_depend_on_the_seed_only():
    assert generate_pairs(30, 1) == generate_pairs(50, 1)[:30]
    assert generate_pairs(30, 1) != generate_pairs(30, 2)


def test_exhausted_phrasebook(monkeypatch):
    monkeypatch.setattr(phrasebook, "SENTENCES", (("Um {quarter}.", "At {quarter}."),))
    monkeypatch.setattr(phrasebook, "PATIENCE", 1000)
    with pytest.raises(ValueError, match=r"holds about 1[56].* pairs, not 1000"):
        generate_pairs(1000, 0)

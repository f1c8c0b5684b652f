import pytest
import sacrebleu

from tests.translation.tiny import make_dictionary
from un.translation.scores import SentencePair, score_translations

REFERENCES = ["Two dogs play in the snow.", "A man, in a red hat, walks along the street.", "It &c. ends"]
HYPOTHESES = ["Two dogs play in snow.", "A man in a red hat walks down the street.", "It &c. ends"]
TOKENS = [
    ["two dogs play in the snow .", "a man , in a red hat , walks along the street .", "it &amp;c. ends"],
    ["two dogs play in snow .", "a man in a red hat walks down the street .", "it &amp;c. ends"],
]


def make_pairs(hypotheses=HYPOTHESES):
    return [SentencePair(i, "Quelle", *pair) for i, pair in enumerate(zip(REFERENCES, hypotheses, strict=True))]


def test_scores_are_sacrebleus_and_say_what_they_are():
    scores = score_translations(make_pairs(), TOKENS[1], TOKENS[0], lowercase=False)
    expected = sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES])
    assert scores["sacrebleu"].value == expected.score
    assert scores["chrf"].value == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score
    assert scores["bleu"].value == sacrebleu.corpus_bleu(TOKENS[1], [TOKENS[0]], tokenize="none", force=True).score
    details = {name: score.details for name, score in scores.items()}
    assert details["bleu"].startswith(
        "BLEU-4 on Moses tokens, one reference, sacrebleu nrefs:1|case:mixed|eff:no|tok:none"
    )
    assert "detokenised text, one reference, sacrebleu nrefs:1|case:mixed|eff:no|tok:13a" in details["sacrebleu"]
    assert details["chrf"].startswith("chrF2 on detokenised text")
    assert all(f"version:{sacrebleu.__version__}" in text for text in details.values())


def test_tokenised_bleu_is_that_of_fairseq():
    from fairseq.scoring.bleu import BleuConfig, Scorer  # after the guarded import of fairseq

    dictionary = make_dictionary()
    scorer = Scorer(BleuConfig(pad=dictionary.pad(), eos=dictionary.eos(), unk=dictionary.unk()))
    words = sorted({word for side in TOKENS for line in side for word in line.split()})
    for word in words:
        dictionary.add_symbol(word)
    for reference, hypothesis in zip(*TOKENS, strict=True):
        encoded = [dictionary.encode_line(line, add_if_not_exist=False) for line in (reference, hypothesis)]
        scorer.add(*encoded)
    score = score_translations(make_pairs(), TOKENS[1], TOKENS[0], lowercase=True)["bleu"].value
    assert score == pytest.approx(scorer.score(), abs=0.01)


def test_case_counts_unless_translations_are_lower_cased():
    lowered = make_pairs([line.lower() for line in REFERENCES])
    scores = {flag: score_translations(lowered, TOKENS[0], TOKENS[0], flag) for flag in (True, False)}
    for name in ("sacrebleu", "chrf"):
        assert scores[True][name].value == pytest.approx(100)
        assert scores[False][name].value < 99
    assert "lower-cased Moses tokens" in scores[True]["bleu"].details
    assert "case:lc" in scores[True]["sacrebleu"].details

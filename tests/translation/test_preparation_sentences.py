import pytest

from un.translation.preparation.sentences import (
    Limits,
    map_apostrophe,
    normalize,
    normalize_and_tokenize,
    read_segments,
    strip_tags,
    tokenize,
)


def test_training_tags_are_stripped_and_metadata_dropped():
    lines = [
        "<url>http://example.org</url>",
        "<keywords>talks, science</keywords>",
        "<talkid>17</talkid>",
        "<title>A title</title>",
        "<description>What it is about</description>",
        " A sentence with 1 < 2 .",
    ]
    assert list(strip_tags(lines)) == ["A title", "What it is about", " A sentence with 1 < 2 ."]


def test_segments_lose_their_tags_and_nothing_else():
    lines = ["<doc>", '<seg id="1"> Tom &amp; Jerry </seg>', '<seg id="22">a</seg>  ', "<p>text</p>"]
    assert list(read_segments(lines)) == ["Tom &amp; Jerry", "a"]


@pytest.mark.parametrize(
    ("language", "line", "tokens"),
    [
        ("en", "It's a well-known fact, isn't it?", "It &apos;s a well-known fact , isn &apos;t it ?"),
        ("de", "Wie geht's [heute]?", "Wie geht &apos; s &#91; heute &#93; ?"),
        ("en", 'He paid 5,300 "euros" & left.', "He paid 5,300 &quot; euros &quot; &amp; left ."),
        ("de", "Das ist z.B. am 3. Mai.", "Das ist z.B. am 3. Mai ."),
        ("en", "So am I.", "So am I ."),  # a single letter, an abbreviation, a German number: the last period is split
        ("en", "He lives in the U.S.", "He lives in the U.S ."),
        ("de", "Er hat ein iPhone 5.", "Er hat ein iPhone 5 ."),
        ("en", "And then...", "And then ..."),
        ("en", "He said 'yes.'", "He said &apos; yes . &apos;"),
        ("en", "  \t ", ""),
        ("en", "a|b", "a &#124; b"),
    ],
)
def test_tokens_are_those_of_moses(language, line, tokens):
    assert tokenize(line, language) == tokens


def test_hyphens_are_split_only_when_asked():
    assert tokenize("well-known", "en") == "well-known"
    assert tokenize("well-known", "en", split_hyphens=True) == "well @-@ known"


@pytest.mark.parametrize(
    ("language", "line", "normalized"),
    [
        ("en", "„Hallo“ – she’s said «no» …", '"Hallo" - she\'s said "no" ...'),
        ("en", "10\u00a0000 euros", "10.000 euros"),
        ("de", "10\u00a0000 Euro", "10,000 Euro"),
        ("en", "a\u200bb\x07c", "a b c"),
        ("en", "the ’90s", 'the "90s'),  # the Perl script takes a lone ’ for a quotation mark
        ("en", '"well",', '"well,"'),
        ("de", '"gut,"', '"gut",'),
        ("de", 'Er sagt "gut."', 'Er sagt "gut".'),  # the line feed behind counts as text
    ],
)
def test_punctuation_is_normalised_as_in_the_perl_scripts(language, line, normalized):
    assert normalize(line, language) == normalized


def test_wmt_lines_are_normalised_before_they_are_tokenised():
    assert normalize_and_tokenize("„well-known“\u200b", "en") == "&quot; well @-@ known &quot;"


def test_apostrophe():
    assert map_apostrophe("it’s") == "it's"


@pytest.mark.parametrize(
    ("source", "target", "kept"),
    [
        ("a b c", "x y", True),  # a ratio of exactly 1.5
        ("a b c d", "x y", False),
        ("x y", "a b c d", False),
        ("", "a", False),
        ("a", " ", False),
        ("a b c d e f", "a b c d e", False),  # longer than 5
        ("a b c d e", "a b c d e", True),
        ("a", "b", False),  # shorter than 2
        ("a " + "b" * 1001, "c d", False),
        ("a " + "b" * 1000, "c d", True),
    ],
)
def test_pairs_are_kept_by_length_and_ratio(source, target, kept):
    assert Limits(shortest=2, longest=5, ratio=1.5).accept(source, target) is kept

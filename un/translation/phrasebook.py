"""German-English sentences about facts that CLDR can say in both languages: dates, amounts, places, languages.

A fact is drawn once and rendered twice, through Babel's two locales; the sentences around it are ours. Nothing is
downloaded, and the same seed gives the same sentences everywhere (with the same version of Babel).
"""

import datetime
import functools
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from babel import Locale
from babel.dates import format_date, format_interval, format_skeleton, format_time, format_timedelta
from babel.lists import format_list
from babel.numbers import format_compact_decimal, format_currency, format_decimal, format_percent
from babel.units import format_unit

GERMAN, ENGLISH = Locale("de"), Locale("en")
PATIENCE = 10_000  # draws without a new sentence until the phrasebook counts as exhausted
FIRST_DAY, NUM_DAYS = datetime.date(1990, 1, 1), 40 * 365

# Languages and countries (without an article in German) with one common name in each language.
LANGUAGES = "ar bg cs da de el en es et fi fr ga hi hr hu is it ja ko lt lv nl no pl pt ro ru sk sl sv tr uk zh"
COUNTRIES = (
    "AR AT AU BE BG BR CA CL CN CO CY CZ DE DK EE EG ES FI FR GR HR HU IE IN IS IT JP KE LT LU LV MA MT MX NO NZ PE "
    "PL PT RO RS SE SI TH TN VN"
)
CURRENCIES = ("EUR", "USD", "GBP", "JPY")


@dataclass(frozen=True)
class Slot:
    """A gap in a sentence.

    Args:
        draw: Draws a fact, the same for both languages.
        render: Says the fact in the language of a locale.
    """

    draw: Callable[[Random], Any]
    render: Callable[[Any, Locale], str]


def _draw_date(random: Random) -> datetime.date:
    return FIRST_DAY + datetime.timedelta(days=random.randrange(NUM_DAYS))


def _draw_interval(random: Random) -> tuple[datetime.date, datetime.date]:
    start = _draw_date(random)
    return start, start + datetime.timedelta(days=random.randrange(1, 60))


def _draw_minutes(random: Random) -> datetime.time:
    return datetime.time(random.randrange(24), random.randrange(60))


def _draw_timedelta(random: Random) -> datetime.timedelta:
    days = random.choice((1 / 24, 1, 7, 30, 365)) * random.randrange(1, 23)
    return datetime.timedelta(days=days)


def _draw_amount(random: Random) -> int | float:
    """An amount of one to four digits, in half of the cases with one more behind the point."""
    amount = random.randrange(1, 10 ** random.randrange(1, 5))
    return amount if random.random() < 0.5 else amount + random.randrange(1, 10) / 10


def _render_duration(fact: tuple[int, int], locale: Locale) -> str:
    hours, minutes = (
        format_unit(number, unit, locale=locale)
        for number, unit in zip(fact, ("duration-hour", "duration-minute"), strict=True)
    )
    return format_list([hours, minutes], locale=locale)


def _make_measure(*units: str) -> Slot:
    """A slot for an amount in one of the units."""
    return Slot(
        lambda random: (_draw_amount(random), random.choice(units)),
        lambda fact, locale: format_unit(fact[0], fact[1], locale=locale),
    )


def _make_date(skeleton: str) -> Slot:
    """A slot for some part of a date."""
    return Slot(_draw_date, lambda fact, locale: format_skeleton(skeleton, fact, locale=locale))


def _make_names(table: str, codes: str, most: int, style: Any = "standard") -> Slot:
    """A slot for a list of names that a locale keeps in a table."""
    return Slot(
        lambda random: random.sample(codes.split(), random.randrange(1, most + 1)),
        lambda fact, locale: format_list([getattr(locale, table)[code] for code in fact], style, locale),
    )


SLOTS: Mapping[str, Slot] = {
    "date": Slot(_draw_date, lambda fact, locale: format_date(fact, "long", locale)),
    "weekday": Slot(_draw_date, lambda fact, locale: format_date(fact, "full", locale)),
    "short_date": Slot(_draw_date, lambda fact, locale: format_date(fact, "medium", locale)),
    "month": _make_date("yMMMM"),
    "quarter": _make_date("yQQQQ"),
    "day": _make_date("MMMMd"),
    "interval": Slot(_draw_interval, lambda fact, locale: format_interval(fact[0], fact[1], "yMMMMd", locale=locale)),
    "time": Slot(_draw_minutes, lambda fact, locale: format_time(fact, "short", locale=locale)),
    "ago": Slot(_draw_timedelta, lambda fact, locale: format_timedelta(-fact, add_direction=True, locale=locale)),
    "ahead": Slot(_draw_timedelta, lambda fact, locale: format_timedelta(fact, add_direction=True, locale=locale)),
    "duration": Slot(lambda random: (random.randrange(1, 24), random.randrange(1, 60)), _render_duration),
    "number": Slot(_draw_amount, lambda fact, locale: format_decimal(fact, locale=locale)),
    "whole": Slot(lambda random: random.randrange(2, 10**6), lambda fact, locale: format_decimal(fact, locale=locale)),
    "large": Slot(
        lambda random: random.randrange(11, 1000) * 10**5,
        lambda fact, locale: format_compact_decimal(fact, format_type="long", locale=locale, fraction_digits=1),
    ),
    "percent": Slot(
        lambda random: random.randrange(1, 1000) / 1000,
        lambda fact, locale: format_percent(fact, locale=locale, decimal_quantization=False),
    ),
    "price": Slot(
        lambda random: (_draw_amount(random), random.choice(CURRENCIES)),
        lambda fact, locale: format_currency(fact[0], fact[1], locale=locale, format_type="name"),
    ),
    "mass": _make_measure("mass-gram", "mass-kilogram", "mass-tonne"),
    "length": _make_measure("length-centimeter", "length-meter", "length-kilometer", "length-mile"),
    "area": _make_measure("area-square-meter", "area-square-kilometer", "area-hectare"),
    "volume": _make_measure("volume-milliliter", "volume-liter", "volume-cubic-meter"),
    "speed": _make_measure("speed-kilometer-per-hour", "speed-meter-per-second"),
    "temperature": _make_measure("temperature-celsius", "temperature-fahrenheit"),
    "power": _make_measure("power-watt", "power-kilowatt", "power-megawatt"),
    "country": _make_names("territories", COUNTRIES, 1),
    "countries": _make_names("territories", COUNTRIES, 4),
    "one_of_the_countries": _make_names("territories", COUNTRIES, 3, "or"),
    "language": _make_names("languages", LANGUAGES, 1),
    "languages": _make_names("languages", LANGUAGES, 4),
    "one_of_the_languages": _make_names("languages", LANGUAGES, 3, "or"),
}

SENTENCES = (
    ("Das Treffen findet am {weekday} statt.", "The meeting takes place on {weekday}."),
    ("Wir fahren am {date} nach {country}.", "We are going to {country} on {date}."),
    ("Sie wurde am {date} in {country} geboren.", "She was born in {country} on {date}."),
    ("Er lebt seit {month} in {country}.", "He has been living in {country} since {month}."),
    ("Das Buch erschien im {month} auf {languages}.", "The book was published in {languages} in {month}."),
    ("Im {quarter} stieg der Umsatz um {percent}.", "Revenue rose by {percent} in the {quarter}."),
    ("Nur {percent} der Befragten sprechen {language}.", "Only {percent} of those asked speak {language}."),
    ("Das Museum bleibt am {day} bis {time} Uhr offen.", "The museum stays open until {time} on {day}."),
    ("Das Hotel ist ausgebucht: {interval}.", "The hotel is fully booked: {interval}."),
    ("Der Zug nach {country} fährt um {time} Uhr ab.", "The train to {country} leaves at {time}."),
    ("Die Sitzung am {short_date} beginnt um {time} Uhr.", "The session on {short_date} begins at {time}."),
    ("Die letzte Prüfung war {ago}.", "The last exam was {ago}."),
    ("Die nächste Lieferung nach {country} kommt {ahead}.", "The next delivery to {country} arrives {ahead}."),
    ("Der Flug nach {country} dauert {duration}.", "The flight to {country} takes {duration}."),
    ("Das Paket wiegt {mass} und kostet {price}.", "The parcel weighs {mass} and costs {price}."),
    ("Die Fahrkarte kostet {price}.", "The ticket costs {price}."),
    ("Die Brücke ist {length} lang und {length} breit.", "The bridge is {length} long and {length} wide."),
    ("Der Garten misst {area}.", "The garden measures {area}."),
    ("Der Tank fasst {volume}.", "The tank holds {volume}."),
    ("Die Höchstgeschwindigkeit beträgt {speed}.", "The top speed is {speed}."),
    ("Das Thermometer zeigt {temperature}.", "The thermometer reads {temperature}."),
    ("Der Motor leistet {power}.", "The engine delivers {power}."),
    ("Das Ergebnis ist {number} statt {number}.", "The result is {number} instead of {number}."),
    ("Die Stadt hat {whole} Einwohner.", "The city has {whole} inhabitants."),
    ("In der Region leben {large} Menschen.", "There are {large} people living in the region."),
    ("Sie spricht {languages}.", "She speaks {languages}."),
    ("Möchten Sie {one_of_the_languages} lernen?", "Would you like to learn {one_of_the_languages}?"),
    ("Wir liefern nach {countries}.", "We deliver to {countries}."),
    ("Reisen Sie lieber nach {one_of_the_countries}?", "Would you rather travel to {one_of_the_countries}?"),
    ("Die Mannschaft aus {country} kommt am {day} an.", "The team from {country} arrives on {day}."),
)


def draw_pair(random: Random) -> tuple[str, str]:
    """Returns a German sentence and its English translation; spaces are plain ones, whatever CLDR has."""
    german, english = random.choice(SENTENCES)
    names = [name for _, name, _, _ in string.Formatter().parse(german) if name]
    facts: dict[str, list[Any]] = {name: [] for name in names}
    for name in names:
        facts[name].append(SLOTS[name].draw(random))
    return _fill(german, facts, GERMAN), _fill(english, facts, ENGLISH)


def _fill(sentence: str, facts: Mapping[str, list[Any]], locale: Locale) -> str:
    """Renders the facts into the sentence; of several with one name, in their order."""
    rendered = {name: iter([SLOTS[name].render(fact, locale) for fact in found]) for name, found in facts.items()}
    parts = [text + (next(rendered[name]) if name else "") for text, name, _, _ in string.Formatter().parse(sentence)]
    return " ".join("".join(parts).split())


@functools.cache
def generate_pairs(count: int, seed: int) -> tuple[tuple[str, str], ...]:
    """Returns `count` pairs (German, English); no two share a German or an English sentence.

    Raises:
        ValueError: There are not that many.
    """
    random, idle = Random(seed), 0
    pairs: list[tuple[str, str]] = []
    seen: set[str] = set()
    while len(pairs) < count:
        pair = draw_pair(random)
        idle = 0 if seen.isdisjoint(pair) else idle + 1
        if not idle:
            pairs.append(pair)
            seen.update(pair)
        elif idle == PATIENCE:
            raise ValueError(f"the phrasebook holds about {len(pairs)} pairs, not {count}")
    return tuple(pairs)

"""Dates and quantities of two units, as people write them."""

import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from gadfly.grading.numbers import DECIMAL, MEASURE_WORDS, UNIT_SIZES

_MONTHS = (
    *("january", "february", "march", "april", "may", "june", "july", "august", "september", "october"),
    *("november", "december"),
)
WEEKDAYS = frozenset(["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"])
MONTHS = frozenset(_MONTHS)
_MONTH_OF = {name: place for place, name in enumerate(_MONTHS, start=1)}
_MONTH_OF |= {name[:3]: place for name, place in _MONTH_OF.items()} | {"sept": 9}
_MONTH = "|".join(sorted(_MONTH_OF, key=len, reverse=True))
_DAY = r"(?P<day>[0-3]?[0-9])(?:st|nd|rd|th)?"
_DATE = re.compile(
    rf"""(?<![A-Za-z0-9])(?:
    (?P<iso>[0-9]{{4}}-[01]?[0-9]-[0-3]?[0-9])
    | (?:the\ )?(?P<day_first>[0-3]?[0-9])(?:st|nd|rd
        |th)?(?:\ of)?\ (?P<month_second>{_MONTH})
        \.?(?:,?\ (?P<year_last>[0-9]{{4}}))?
    | (?P<month_first>{_MONTH})\.?\ (?:the\ )?{_DAY}(?:,?\ (?P<year_end>[0-9]{{4}}))?
    )(?![A-Za-z0-9]|-[0-9]|\.[0-9])""",
    re.VERBOSE | re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Date:
    """A day of the calendar; `year` is None where none is stated."""

    year: int | None
    month: int
    day: int


def _date(match: re.Match[str]) -> Date | None:
    if match["iso"]:
        year, month, day = map(int, match["iso"].split("-"))
        return Date(year, month, day) if 1 <= month <= 12 and 1 <= day <= 31 else None
    month = _MONTH_OF[(match["month_second"] or match["month_first"]).lower()]
    day = int(match["day_first"] or match["day"])
    year_text = match["year_last"] or match["year_end"]
    return Date(int(year_text) if year_text else None, month, day) if 1 <= day <= 31 else None


def whole_date(text: str) -> Date | None:
    """The date that is the whole of `text`."""
    match = _DATE.fullmatch(text.strip().rstrip(".").strip())
    return None if match is None else _date(match)


def dates_in(text: str) -> list[Date]:
    """Every date in `text`, in order."""
    return [date for match in _DATE.finditer(text) if (date := _date(match)) is not None]


def same_date(reference: Date, answer: Date) -> bool | None:
    """Whether two dates are the same; None where only one has a year."""
    if (reference.month, reference.day) != (answer.month, answer.day):
        return False
    if reference.year == answer.year:
        return True
    return None if reference.year is None or answer.year is None else False


@dataclass(frozen=True, slots=True)
class Compound:
    """A quantity of several units, the largest first: 3 hours 20 minutes."""

    parts: tuple[tuple[Fraction, str], ...]


_PART = rf"({DECIMAL})[ -]?([A-Za-z]{{1,12}})\.?"
_COMPOUND = re.compile(
    rf"(?<![0-9A-Za-z.,/]){_PART}(?:(?:,?\ and\ |,?\ |\ &\ )?{_PART})+(?![A-Za-z0-9])", re.IGNORECASE
)
_ONE = re.compile(_PART, re.IGNORECASE)


def _compound(text: str) -> Compound | None:
    parts: list[tuple[Fraction, str]] = []
    for number, word in _ONE.findall(text):
        unit = MEASURE_WORDS.get(word.lower())
        if unit not in UNIT_SIZES or len(number) > 20:
            return None
        parts.append((Fraction(number.replace(",", "") if number[0] != "." else f"0{number}"), unit))
    sizes = [UNIT_SIZES[unit] for _, unit in parts]
    is_falling = all(left[0] == right[0] and left[1] > right[1] for left, right in pairwise(sizes))
    return Compound(tuple(parts)) if len(parts) > 1 and is_falling else None


def whole_compound(text: str) -> Compound | None:
    """The quantity of several units that is the whole of `text`."""
    match = _COMPOUND.fullmatch(text.strip().rstrip(".").strip())
    return None if match is None else _compound(match[0])


def compounds_in(text: str) -> list[Compound]:
    """Every quantity of several units in `text`, in order."""
    return [found for match in _COMPOUND.finditer(text) if (found := _compound(match[0])) is not None]


def same_compound(reference: Compound, answer: Compound) -> bool | None:
    """Whether two quantities are the same; None where they are only after a conversion."""
    if reference.parts == answer.parts:
        return True
    totals = [sum(value * UNIT_SIZES[unit][1] for value, unit in each.parts) for each in (reference, answer)]
    kinds = [UNIT_SIZES[each.parts[0][1]][0] for each in (reference, answer)]
    return None if totals[0] == totals[1] and kinds[0] == kinds[1] else False

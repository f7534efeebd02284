"""Numbers with their units, as people and models write them. Values are exact; doubtful literals are not read."""

import re
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction

from gadfly.grading.denial import is_denied

_MAX_DIGITS = 300  # keeps exact arithmetic fast
_MAX_EXPONENT = 300


class Unread(StrEnum):
    """The reason why no single answer could be read from a response."""

    MISSING = "missing"  # the response states nothing of the reference's kind
    HEDGED = "hedged"  # several answers, a bound, a negation, or a withdrawn answer


@dataclass(frozen=True, slots=True)
class Number:
    """An exact value. `unit` is in canonical words, empty when none is stated; `percent` is the % sign."""

    value: Fraction
    unit: tuple[str, ...] = ()
    percent: bool = False


_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})++(?![0-9])|[0-9]++)"
DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]++)?+|\.[0-9]++)"
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_LITERAL = re.compile(
    rf"""(?P<sign>(?<![0-9A-Za-z)\]}}%])[-+][ ]?|\b(?:minus|negative)\ )?
    (?:(?P<currency>(?:US|CA|AU)?\$|£|€|¥|₹|\b(?:Rs\.?|INR|USD|EUR|GBP)(?=[ ]?[0-9-]))[ ]?(?P<inner>-)?)?+
    (?:(?P<mixed>[0-9]{{1,9}})(?:[ ]|[ ]and[ ])(?=[0-9]{{1,9}}[ ]?/[ ]?[0-9]))?
    (?P<number>{DECIMAL})
    (?:[ ]?/[ ]?(?P<under>{DECIMAL}))?+
    (?:[eE](?P<exponent>[-+]?[0-9]{{1,6}})(?![0-9A-Za-z])
    |[ ]?[×*x·][ ]?10[ ]?\^[ ]?\{{?(?P<power>[-+]?[0-9]{{1,6}})\}}?)?+
    (?P<percent>[ ]?(?:%|(?:percent|per\ cent|pct)\b))?+
    (?P<scale>(?:[ ]?-?(?:hundred|thousand|million|billion|trillion|dozen)s?\b){{0,2}}+)""",
    re.VERBOSE | re.IGNORECASE,
)
_NOT_BEFORE = re.compile(r"(?:^|[^#])#$|[A-Za-z0-9_.,/^\\²³√π∞]$|[0-9]:$|\\[A-Za-z]+\s?[\[{(]*$|[A-Za-z]\($|[\^_]\{$")
_OPERATOR_AFTER = re.compile(
    r"""\s*(?:\)\s*[-+*/×÷^] | [-/]\s*$ | [+*×÷^<>≤≥±·√π!⁰¹²³⁴-⁹∞] | i(?![A-Za-z]) | -\s?[$(\\]?[0-9(\\]
    | [–—]\s?\$?[0-9] | /\s?[0-9(\\$] | [xX]\s?[0-9(]) | [({\[] | \s?\\(?!\))""",
    re.VERBOSE,
)
# Words that change the value of the number before them.
_DENIED_AFTER = re.compile(
    r"""\s*(?:squared|cubed|factorial|doubled|tripled|halved|twice|thrice|divided|multiplied|subtracted|plus\b|minus\b
    |point\ \w|repeating|recurring|times\ (?:that|this|it|pi|[b-z])\b|to\ the\ power|[(,]?\s?(?:in\ )?base\b
    |in\ [0-9]+(?![0-9,.]*[0-9]|\s?[a-z])|(?:for\ (?:every|each)|:)\ ?[0-9]|parts?\ per\b|at\ (?:most|least)\b
    |(?:a|one|two|three)?[ -]?(?:halves|half|thirds?|quarters?\ of|fourths?|fifths?|sixths?|sevenths?|eighths?|ninths?
        |tenths?|twelfths?|(?:hundred|thousand|million|billion)ths?)\b
    |(?:and|&)\ (?:a|an|one|two|three|four|five|six|seven|eight|nine)\b|or\ (?:more|less|fewer|so)\b
    |(?:more|less|fewer)\ than\b(?!\ (?-i:[A-Z])[a-z]{2}|\ (?:he|she|they|his|her|their|him|them)\b)
    |too\ (?:many|few|much|high|low)\b|-?ish\b
    |\(?mod\b|[万千百亿億兆十萬‰‱]|in\ (?:a|one|every)\ (?:ten|hundred|thousand|million)\b|per\ (?:[0-9]|mille?\b)
    |(?:degrees?\ )?below\ zero|is\ (?:not|wrong|incorrect)\b)""",
    re.VERBOSE | re.IGNORECASE,
)
# Text that joins a second number to the first.
_ALSO = re.compile(
    r"""\s*(?:
    [,;]?\s*(?:or|and|and/or|maybe|perhaps|possibly|alternatively|but\ (?:maybe|perhaps)|to|through|plus|minus|times
        |out\ of|over|vs\.?)\s+(?:(?:maybe|perhaps|also|possibly|else|even)\s+)*+(?:[a-z]\s?=\s?)?
    | [,;]\s*(?:[a-z]\s?=\s?)? | \(\s*or\s+ | \((?=\s*[-+$£€0-9.,]+\s*\)) | /\s? | \s-\s | [–—]\s? | [ ]
    )(?=[-+]?[$£€]?[0-9.]*[0-9])""",
    re.VERBOSE | re.IGNORECASE,
)
_CLAUSE_END = re.compile(
    r"""[,;.(:=\n]|\b(?:because|since|which|as|so|to|when|if|for|after|before|in|at|on|from|with|that|who|by|is|was|are
    |given|using|every|each|per)\b""",
    re.VERBOSE,
)
# The rest of an equation that began with a number: 50 balls / 200 balls = 25%.
_SUM_AFTER = re.compile(r"(?:(?!\b(?:because|since|as|so|where|when)\b)[^=≈,;:]){0,200}[=≈](?=[^=≈]*[0-9]|\s*[A-Za-z])")
_ASSIGNED = re.compile(
    rf"(?<![A-Za-z])[A-Za-z]\s?=\s?-?[$£€]?({DECIMAL})(?=\s*(?:$|[.;)](?![0-9])|,(?![0-9])|and\b|or\b|[A-Za-z]\s?=))"
)
_CONDITION = re.compile(r"\b(?:otherwise|unless|or else)\b", re.IGNORECASE)
# Words after a number, in its sentence, that qualify it, take it back or say that it is another's.
_QUALIFIED = re.compile(
    r"""^\s*(?:almost|nearly)\b|\brounded\ (?:up|down)\b|\b(?:without|excluding|ignoring|not\ (?:counting|including))\b
    |\bbefore\ (?:we|the|any|tax(?:es)?|fees?|tips?|adding|subtracting)\b|\bonly\ (?:if|when|after|before|for
        |on|in|with|because|under)\b|\bgive\ or\ take\b|\bmore\ or\ less\b
    |\band\ (?:change|then\ some|a\ bit|some(?:thing)?|a\ little|counting)\b|\bor\ (?:so|thereabouts)\b
    |\bin\ (?:thousands|millions|billions|hundreds|dozens|lakhs?|crores?)\b|\((?:thousands|millions|billions
        |hundreds|dozens)\)
    |\b(?:is|was)\ (?:my|his|her|their|our|what|just|only|not|wrong|incorrect|too|mistaken)\b|\bfirst\ guess\b
    |\b(?:wrong|incorrect|mistaken|forgets|forgetting|ignores|ignoring|overlooks|neglects)\b|[❌✗✘❎👎]
    |\b(?:they|some|people|others)\ (?:say|claim|think)\b|\bI(?:\ am|\ was|'m)\ told\b|\bshould\ (?:be|have)\b
    |\b(?:tentative|preliminary|unverified|to\ be\ (?:confirmed|checked)|guess(?:ed|ing)?|allegedly|supposedly
        |presumably)\b
    |\b(?:not\ sure|unsure|unless|if)\b|\bcould\ (?:also\ )?be\b|\b(?:disagree|doubt)\b""",
    re.VERBOSE | re.IGNORECASE,
)
# How a clause behind a stated number may begin without taking it back. Others are in doubt: `18, or so I thought`.
_NEXT_CLAUSE = re.compile(r"[^,;—(]{0,60}[,;—]\s+([A-Za-z']+)")
_MAY_FOLLOW = frozenset(
    word
    for line in (
        "because since as which so therefore thus hence where when given making giving leaving and with that i.e",
        "namely meaning for per each not rather exactly in after to by of on at from who whose the a an our its",
        "it we he she they assuming using total this these there all being both obtained found rounded",
    )
    for word in line.split()
)
# What makes a second number a reason and not a second answer, and what joins one as such.
_REASON = re.compile(
    r"\b(?:because|since|as|where|given|from|which is|which equals|that is|i\.e|when|assuming|considering"
    r"|check)\b|[:=(]",
    re.IGNORECASE,
)
_JOINS = re.compile(r"[,;]|\b(?:and|but|yet|while|whereas|or|although|though)\b", re.IGNORECASE)
# A number that is named only to set it aside: `not 20 but 18`, `18, not 20`.
_SET_ASIDE = re.compile(
    rf"(?:\b(?:is|are|was)\s+not|\b(?:is|are|was)n't|\bnot)\s+\$?{DECIMAL}(?:\s?%)?[,;]?\s+(?:but|it's|it is"
    rf"|rather|instead)\b"
    rf"|(?:[,;]|\s+and)?\s*\b(?:not|rather than|instead of)\s+\$?{DECIMAL}(?=\s*(?:[.,;!]?\s*$|[,;.]\s))",
    re.IGNORECASE,
)
_SHARE = re.compile(r"(?<![0-9.,/])([0-9]{1,9})\s+(?:in|out\s+of)\s+([0-9]{1,9})(?![0-9.,]*[0-9]|\s*[A-Za-z%])")
# Words after a number, in its clause, that change it: 18 eggs at most, 18 dollars plus tax.
_NOT_ALL = re.compile(r"\b(?:at (?:most|least)|plus|minus)\b", re.IGNORECASE)
# Text that must not touch a literal: more of the number (0.3..., 0.(3), 5⁻¹), or a sign unknown to these rules.
_GLUED = re.compile(
    r"[.,:/]\.?[0-9]|\.{2}|\.\s?\\(?:overline|dot|bar)|\.\("
    r"|(?![个個元块只本人米天岁歳年月日円枚つ개명원세]|です|입니다|।)[^\x00-\x7f\s°¢€£¥₹—\ud800-\udfff]"
)
# A mark of feet and inches, or of parts of a degree, that closes no quotation.
_PRIME = re.compile(r"(''|\"|')(?![A-Za-z0-9'\"])")
_LEAD = re.compile(
    r"""(?:(?:about|approximately|approx\.?|around|roughly|exactly|only|just|simply|therefore|thus|hence|so|now|also|then
    |still|indeed|clearly|equals?(?:\ to)?|found\ to\ be|a\ total\ of|total\ of|in\ total|the|value|number|is|be
    |given\ by|currently)\b[,:]?\s*
    |[A-Za-z]\s?=\s*|[=≈~:"'({\[*\s])*+""",
    re.VERBOSE | re.IGNORECASE,
)

_MEASURES = {
    "dollar": "$ us$ dollars usd buck bucks",
    "cent": "cents ¢",
    "pound sterling": "£ gbp quid",
    "euro": "€ euros eur",
    "yen": "¥",
    "rupee": "₹ rupees rs rs. inr",
    "second": "seconds sec secs s",
    "minute": "minutes min mins",
    "hour": "hours hr hrs h",
    "day": "days",
    "week": "weeks wk wks",
    "month": "months",
    "year": "years yr yrs",
    "millimeter": "millimeters millimetre millimetres mm",
    "centimeter": "centimeters centimetre centimetres cm",
    "meter": "meters metre metres m",
    "kilometer": "kilometers kilometre kilometres km kms",
    "inch": "inches in",
    "foot": "feet ft",
    "yard": "yards yd yds",
    "mile": "miles mi",
    "milligram": "milligrams mg",
    "gram": "grams g gm",
    "kilogram": "kilograms kg kgs kilo kilos",
    "ton": "tons tonne tonnes",
    "ounce": "ounces oz",
    "pound": "pounds lb lbs",
    "milliliter": "milliliters millilitre millilitres ml",
    "liter": "liters litre litres l",
    "gallon": "gallons gal",
    "quart": "quarts qt",
    "pint": "pints pt",
    "cup": "cups",
    "degree": "degrees deg",
    "celsius": "centigrade",
    "fahrenheit": "",
    "radian": "radians rad",
    "newton": "newtons",
    "joule": "joules",
    "watt": "watts",
    "kilowatt": "kilowatts kw",
    "kilowatthour": "kwh",
    "′": "",  # feet or minutes of arc
    "″": "",  # inches or seconds of arc
    "mile/hour": "mph",
    "kilometer/hour": "kph kmh",
}
MEASURE_WORDS = {word: name for name, words in _MEASURES.items() for word in (name, *words.split())}
AMBIGUOUS_UNITS = {"in", "s", "h", "m", "g", "l", "pt"}  # units only when they touch the number or stand alone
_SCALE_LIKE = frozenset(
    word
    for line in (
        "k b t bn mn mil mio mln lakh lakhs crore crores score gross grand tens quadrillion quintillion",
        "am pm pi",  # these are not units either
    )
    for word in line.split()
)
_MONEY = {"dollar", "cent", "pound sterling", "euro", "yen", "rupee"}
_POWERS = {"square": "square", "sq": "square", "squared": "square", "cubic": "cubic", "cu": "cubic"}
# Words after a number that do not belong to its unit.
_UNIT_STOP = frozenset(
    word
    for line in (
        "a an the this that these those each every any and or of for to in at on by with from than per as not",
        "is was are will would has have had can could should does do did be been because so which who when while",
        "if since then now later after before until during through over under between apart ago again back away",
        "total altogether left more less fewer extra only remaining overall worth long old tall high wide",
        "it its there here your my his her their our he she they we you",
    )
    for word in line.split()
)
_RATE = (
    r"([A-Za-z]{1,20})(?:\s?\^\s?\{?([23])\}?(?![0-9])|([²³])|\s+(squared|cubed)\b|\s?(?:/"
    r"|\bper\b)\s?([A-Za-z]{1,20}))?"
)
_UNIT_WORD = re.compile(r"[ -]?([A-Za-z¢°]+)(?:\^?\{?([23])\}?(?![0-9A-Za-z])|([²³]))?")


def _digits(text: str) -> Fraction | None:
    text = text.replace(",", "")
    return Fraction(text if text[0] != "." else f"0{text}") if len(text) <= _MAX_DIGITS else None


def _value(match: re.Match[str]) -> Fraction | None:
    """The exact value of a literal; None for an undefined one (1/0), one too large to be meant, and no mixed number."""
    value = _digits(match["number"])
    under = _digits(match["under"]) if match["under"] else Fraction(1)
    exponent = int(match["exponent"] or match["power"] or 0)
    if value is None or not under or abs(exponent) > _MAX_EXPONENT:
        return None
    value = value / under * Fraction(10) ** exponent
    if match["mixed"]:
        if not 0 < value < 1:  # `1 and 0/1`, `2 5/4`: two numbers, or a slip
            return None
        value += int(match["mixed"])
    for word in re.findall(r"[a-z]+", (match["scale"] or "").lower()):
        value *= 12 if word.startswith("dozen") else 10 ** _SCALES[word.removesuffix("s")]
    negative = (match["sign"] or "+").strip().lower() in ("-", "minus", "negative")
    return -value if negative != bool(match["inner"]) else value


def singular(word: str) -> str:
    """A unit's word in its canonical form: `mins` is `minute`, `apples` is `apple`."""
    word = word.lower()
    if word in MEASURE_WORDS:
        return MEASURE_WORDS[word]
    for plural, single in (("ies", "y"), ("ches", "ch"), ("shes", "sh"), ("xes", "x"), ("ss", "ss"), ("s", "")):
        if word.endswith(plural) and len(word) > 3:
            return word.removesuffix(plural) + single
    return word


def _unit_after(text: str, currency: str | None) -> tuple[str, ...] | Unread:
    """The unit after a literal, at most three words. MISSING when the text that touches the literal is not a unit."""
    words: list[str] = [MEASURE_WORDS[currency.lower().removeprefix("ca").removeprefix("au")]] if currency else []
    if currency and re.match(r"-?[A-Za-z]", text):
        return Unread.MISSING  # $5m, $5k: a scale, not a unit
    position, rate = 0, re.match(rf"\s?/\s?{_RATE}", text)
    while not rate and len(words) < 4 and (match := _UNIT_WORD.match(text, position)):
        word, glued = match[1].lower(), position == 0 and text[0] not in " -"
        if (
            glued
            and (len(word) < 3 or word in ("kms", "kgs"))
            and (word not in MEASURE_WORDS or match[1] in ("M", "S", "G"))
        ):
            return Unread.MISSING
        if glued and word in ("st", "nd", "rd", "th"):
            return Unread.MISSING
        alone = not text[match.end() :].strip(" .!?\"')*") or text[match.end() : match.end() + 1] == "/"
        is_letter = len(word) == 1 and word not in MEASURE_WORDS and word not in _UNIT_STOP  # 18 x is a term
        if position == 0 and (word in _SCALE_LIKE or match[1] in ("M", "K", "G", "B", "T") or is_letter):
            return Unread.MISSING
        if word in _UNIT_STOP and not (word in AMBIGUOUS_UNITS and (glued or alone)):
            break
        if word in AMBIGUOUS_UNITS and not (glued or alone or match[2] or match[3]):
            break
        raised = {"2": ["square"], "²": ["square"], "3": ["cubic"], "³": ["cubic"]}.get(match[2] or match[3] or "", [])
        if words[-1:] == ["degree"] and word in ("c", "f"):
            word = "celsius" if word == "c" else "fahrenheit"
        words += [*raised, _POWERS.get(word) or singular(word)]
        position = match.end()
        rate = re.match(rf"(?:\s?/\s?|\s+(?:per|an|a)\s+){_RATE}", text[position:])
    if rate is None:
        rate = re.match(rf"\s+(?:per|an|a|each|every)\s+{_RATE}", text[position:])
    if rate and rate[1].lower() in ("ten", "hundred", "thousand", "million", "billion"):
        return Unread.MISSING  # 5 per thousand
    if rate and words:
        power = (rate[2] or rate[3] or rate[4] or rate[5] or "").lower()
        words.append(f"/{singular(rate[1])}{'^3' if power in ('3', '³', 'cubed') else '^2' if power else ''}")
    flat = " ".join(words).replace("mile/hour", "mile /hour").replace("kilometer/hour", "kilometer /hour")
    return tuple(flat.split())


_MARKED = {"′": {"foot", "minute"}, "″": {"inch", "second"}}
_MARKABLE = {"degree", "foot", "inch", "minute", "second", "meter", "centimeter", "yard", "′", "″"}


def same_unit(reference: tuple[str, ...], answer: tuple[str, ...]) -> bool:
    """Whether two units are compatible. Nothing is converted, and a missing unit is compatible with any."""
    if not reference or not answer:
        return True
    for mark, same in _MARKED.items():
        if mark in (*reference, *answer):
            others = {*reference, *answer} - {mark}
            return not others & _MARKABLE or others <= same

    if len({"celsius", "fahrenheit"} & {*reference, *answer}) > 1:
        return False

    def measure(unit: tuple[str, ...]) -> tuple[str, ...]:
        end = next((i + 1 for i, word in enumerate(unit) if word in _MEASURES), 0)
        return unit[: end + 1] if end and unit[end : end + 1] and unit[end][0] == "/" else unit[:end]

    left, right = measure(reference), measure(answer)
    if left or right:
        money = left and right and left[0] in _MONEY and left[0] == right[0]
        return left == right or bool(money and len(left) != len(right))  # $18 is $18 per day, 5 miles is not 5 mph
    rates = {word for word in (*reference, *answer) if word[0] == "/"}
    left, right = (tuple(w for w in unit if w[0] != "/") for unit in (reference, answer))
    if len(rates) > 1:
        return False  # apples per day are not apples per week
    if not left or not right or left[-1] != right[-1]:
        return False
    return set(left) <= set(right) or set(right) <= set(left)


@dataclass(frozen=True, slots=True)
class _Literal:
    """A literal in a span, read or not."""

    start: int
    end: int
    number: Number | None


def _literals(text: str) -> list[_Literal]:
    literals: list[_Literal] = []
    for match in _LITERAL.finditer(text):
        start, end = match.start(), match.end()
        value, number = _value(match), None
        before, after = text[:start], text[end:]
        power = re.search(r"([A-Za-z]{1,20})(\^\{?)?$", before[-24:])
        is_measure = power and (power[1].lower() in MEASURE_WORDS or (power[2] and power[1] in ("unit", "units")))
        if is_measure and literals and match[0] in ("2", "3"):
            continue  # the 2 of 20 ft^2 belongs to the unit
        # x - 5 is a sum with a non-number, "= - 5" a negative number
        is_sum = match["sign"] in ("- ", "+ ") and not re.search(r"(?:^|[:=≈(\[{$])\s{0,9}$", before)
        is_broken = bool(_NOT_BEFORE.search(before[-24:]) or _GLUED.match(after))
        if value is not None and not is_sum and not is_broken:
            unit = _unit_after(after, match["currency"])
            prime = _PRIME.match(after)
            if prime and not unit and before[-1:] not in ("'", '"'):
                unit = ("′" if prime[1] == "'" else "″",)
            if not isinstance(unit, Unread):
                number = Number(value, unit, bool(match["percent"]))
        literals.append(_Literal(start, end, number))
    return literals


def values_in(text: str) -> set[Fraction | None]:
    """The values of all literals in `text`; None for one that cannot be read."""
    return {None if literal.number is None else literal.number.value for literal in _literals(text)}


_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_SPELLED = {word: n for n, word in enumerate(_ONES.split())} | {w: 10 * n for n, w in enumerate(_TENS.split(), start=2)}
_NUMBER_WORD = "|".join([*_SPELLED, "hundred", "thousand", "million", "dozen"])
_SPELLED_OUT = re.compile(
    rf"(?P<sign>(?:minus|negative)\s)?(?:a\s(?=hundred|thousand|million|dozen))?"
    rf"(?P<words>(?:{_NUMBER_WORD})(?:(?:\s|-|\sand\s)(?:{_NUMBER_WORD}))*+)(?![A-Za-z-])",
    re.IGNORECASE,
)
_NOT_AFTER_WORDS = re.compile(
    r"\s*(?:half|halves|third|quarter|fourth|fifth|of\b|or\b|and\b|to\b|point\b|percent|[+*/^×=-])"
)


def _spell(words: str) -> Fraction | None:
    """The value of number words in their usual order: `two hundred and five`. None when the order forms no number."""
    total = group = 0
    last = 10**9  # within a group, each word must be smaller than the previous one
    for word in re.findall(r"[a-z]+", words.lower()):
        if word == "and":
            continue
        if word in _SPELLED:
            size = _SPELLED[word]
            if size >= last or (last < 20) or (last < 100 and size > 9) or (size == 0 and group):
                return None
            group, last = group + size, size
        elif word in ("hundred", "dozen"):
            if group > 99 or (word == "dozen" and total):
                return None
            group, last = (group or 1) * (100 if word == "hundred" else 12), 100
        else:
            scale = 10 ** _SCALES[word]
            if total and total % (scale * 1000):
                return None
            total, group, last = total + (group or 1) * scale, 0, 10**9
    return Fraction(total + group)


_PARTS = {
    word: number
    for number, words in {
        2: "half halves", 3: "third thirds", 4: "quarter quarters fourth fourths", 5: "fifth fifths", 6: "sixth sixths",
        7: "seventh sevenths", 8: "eighth eighths", 9: "ninth ninths", 10: "tenth tenths", 12: "twelfth twelfths",
        100: "hundredth hundredths",
    }.items()
    for word in words.split()
}  # fmt: skip
_SPELLED_FRACTION = re.compile(
    rf"(?P<sign>(?:minus|negative)\s)?(?:(?P<whole>{_NUMBER_WORD})\sand\s)?(?:(?P<count>an?|{_NUMBER_WORD})[\s-])?"
    rf"(?P<part>{'|'.join(_PARTS)})\b(?!\s(?:of|a|an|as|the|more|less)\b|-)",
    re.IGNORECASE,
)


def _spelled_fraction(match: re.Match[str]) -> Fraction | None:
    count = (match["count"] or "one").lower()
    top = Fraction(1) if count in ("a", "an") else _spell(count)
    whole = _spell(match["whole"]) if match["whole"] else Fraction(0)
    if top is None or whole is None or not 0 < top < _PARTS[match["part"].lower()]:
        return None
    if match["count"] is None and match["part"].lower() != "half":
        return None  # `third` is an ordinal
    value = whole + top / _PARTS[match["part"].lower()]
    return -value if match["sign"] else value


def _read_spelled(text: str) -> Number | Unread:
    lead = _LEAD.match(text)
    start = lead.end() if lead else 0
    fraction = _SPELLED_FRACTION.match(text, start)
    if fraction and not _NOT_AFTER_WORDS.match(text, fraction.end()):
        part, unit = _spelled_fraction(fraction), _unit_after(text[fraction.end() :], None)
        return Unread.MISSING if part is None or isinstance(unit, Unread) else Number(part, unit)
    match = _SPELLED_OUT.match(text, start)
    if not match or _NOT_AFTER_WORDS.match(text, match.end()):
        return Unread.MISSING
    value, unit = _spell(match["words"]), _unit_after(text[match.end() :], None)
    if value is None or isinstance(unit, Unread):
        return Unread.MISSING
    return Number(-value if match["sign"] else value, unit)


def _from_spelled(sentence: str) -> str:
    """A sentence from its only number word on: `She has eighteen left.` One is more often a pronoun."""
    words = list(_SPELLED_OUT.finditer(sentence))
    is_one = len(words) == 1 and words[0]["words"].lower() != "one" and sentence[: words[0].start()][-1:] in ("", " ")
    return sentence[words[0].start() :] if is_one and not is_denied(sentence[: words[0].start()]) else sentence


def read_number(text: str, *, stated: bool, share: bool = False) -> Number | Unread:
    """The one number that a sentence states. After a trigger (`stated`) it opens the sentence, otherwise it ends it.

    With `share`, `1 in 6` is 1/6.
    """
    text = _SET_ASIDE.sub(" ", text)
    if share:
        text = _SHARE.sub(r"\1/\2", text)
    if not stated:
        conclusion = re.split(r"\bbecause\b", text, maxsplit=1)[0]
        text = conclusion if _literals(conclusion) else text
    literals = _literals(text)
    if not literals:
        return _read_spelled(text if stated else _from_spelled(text))
    assigned = list(_ASSIGNED.finditer(text))
    if len({_digits(match[1]) for match in assigned}) > 1 and (
        not stated or not text[: assigned[0].start()].strip(" :(")
    ):
        return Unread.HEDGED  # x = 3 or x = 4
    equals = max(text.rfind("="), text.rfind("≈"))
    if not stated and equals >= 0 and _literals(text[equals:]):
        return read_number(text[equals + 1 :], stated=True)
    lead = _LEAD.match(text)
    head = literals[0] if lead and literals[0].start <= lead.end() else None
    if head and not _OPERATOR_AFTER.match(text, head.end) and not _SUM_AFTER.match(text, head.end):
        return _settle(text, head, literals[1:])
    if equals >= 0:
        return read_number(text[equals + 1 :], stated=True)
    if head:
        return Unread.MISSING  # an unevaluated expression
    if _OPERATOR_AFTER.match(text, literals[-1].end) or all(literal.number is None for literal in literals):
        return Unread.MISSING  # cut off in a sum, or only ordinals, times and the like
    if len({literal.number for literal in literals}) > 1 or any(
        _OPERATOR_AFTER.match(text, each.end) for each in literals
    ):
        return Unread.HEDGED
    if is_denied(text[: literals[0].start]):
        return Unread.HEDGED
    return _settle(text, literals[0], [])


def _settle(text: str, head: _Literal, others: list[_Literal]) -> Number | Unread:
    """`head`, unless the words after it change its value or add a second one."""
    if head.number is None:
        return Unread.MISSING
    if _DENIED_AFTER.match(text, head.end) or re.match(r".{0,40}?\bis (?:not|wrong|incorrect)\b", text[head.end :]):
        return Unread.HEDGED
    rest = text[head.end :]
    if _CONDITION.search(rest) or _QUALIFIED.search(rest):
        return Unread.HEDGED
    clause = _NEXT_CLAUSE.match(rest)
    if clause and clause[1].lower() not in _MAY_FOLLOW:
        return Unread.HEDGED
    ending = _CLAUSE_END.search(rest)
    clause_end = head.end + (ending.start() if ending else len(rest))
    nearby = [other for other in others if other.number is None or other.number.value != head.number.value]
    if any(_is_second(text, head, other) for other in nearby):
        return Unread.HEDGED
    if any(other.start < clause_end for other in nearby) or _NOT_ALL.search(text, head.end, clause_end):
        return Unread.HEDGED
    if _NOT_ALL.match(text, clause_end):
        return Unread.HEDGED
    also = _ALSO.match(text, head.end) or _ALSO.match(text, clause_end)
    if also and any(abs(other.start - also.end()) <= 2 for other in nearby):
        return Unread.HEDGED
    return head.number


def _is_second(text: str, head: _Literal, other: _Literal) -> bool:
    """Whether a later number of the sentence is a second answer: joined, no reason, and not a part of a sum."""
    between = text[head.end : other.start]
    if not _JOINS.search(between) or _REASON.search(between):
        return False
    return not _OPERATOR_AFTER.match(text, other.end) and not re.search(r"[-+*/×÷=^]\s*$", between)


def same_number(reference: Number, answer: Number) -> bool:
    """Whether value and unit agree. A percent sign may be missing at 0 and above 1, where no fraction can be meant."""
    if reference.value != answer.value or not same_unit(reference.unit, answer.unit):
        return False
    if reference.percent != answer.percent and (answer.unit if reference.percent else reference.unit):
        return False
    return reference.percent == answer.percent or abs(reference.value) > 1 or reference.value == 0


_NEAR = Fraction(1, 1000)


def compare_numbers(reference: Number, answer: Number) -> bool | None:
    """Whether two numbers are the same. None where a rounding, a conversion or a percent sign may be the difference."""
    if same_number(reference, answer):
        return True
    one, other = reference.value, answer.value
    if reference.percent != answer.percent and (one == other or one in (other * 100, other / 100)):
        return None
    if _is_rounding(one, other) or _is_rounding(other, one):
        return None
    left, right = (_measured(each) for each in (reference, answer))
    if left is not None and right is not None:
        return None if left == right else False
    if one != other:
        return False
    rates = [{word for word in each.unit if word[0] == "/"} for each in (reference, answer)]
    has_measure = any(word in _MEASURES for word in (*reference.unit, *answer.unit))
    return False if has_measure or (rates[0] and rates[1] and rates[0] != rates[1]) else None  # 26 fruits, 26 apples


def _measured(number: Number) -> tuple[str, Fraction] | None:
    """The kind of a quantity of one unit and its size in that kind's smallest unit."""
    unit = number.unit[0] if len(number.unit) == 1 else ""
    return None if unit not in UNIT_SIZES else (UNIT_SIZES[unit][0], number.value * UNIT_SIZES[unit][1])


# The kind of each unit, and its size in the smallest unit of that kind.
UNIT_SIZES = {
    unit: (kind, size)
    for kind, units in {
        "time": {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800},
        "length": {"millimeter": 1, "centimeter": 10, "meter": 1000, "kilometer": 10**6},
        "feet": {"inch": 1, "foot": 12, "yard": 36, "mile": 63360},
        "mass": {"milligram": 1, "gram": 1000, "kilogram": 10**6, "ton": 10**9},
        "weight": {"ounce": 1, "pound": 16},
        "volume": {"milliliter": 1, "liter": 1000},
        "measure": {"cup": 1, "pint": 2, "quart": 4, "gallon": 16},
        "money": {"cent": 1, "dollar": 100},
        "years": {"month": 1, "year": 12},
    }.items()
    for unit, size in units.items()
}


def _is_rounding(exact: Fraction, rounded: Fraction) -> bool:
    """Whether one value may be the other, rounded: to two decimals or more, or to a thousandth of its size."""
    if exact.denominator == 1 and rounded.denominator == 1:
        return False
    if abs(exact - rounded) <= _NEAR * max(abs(exact), abs(rounded)):
        return True
    decimals = next((places for places in range(2, 12) if (rounded * 10**places).denominator == 1), None)
    has_decimals = decimals is not None and (rounded * 10).denominator != 1
    return bool(has_decimals and decimals is not None and abs(exact - rounded) * 10**decimals * 2 <= 1)


def whole_number(text: str) -> Number | None:
    """The number, with its unit, that is the whole of `text`; None for any other text."""
    text = text.strip().removesuffix(".").strip()
    match = _LITERAL.match(text)
    if match is None:
        spelled = _SPELLED_FRACTION.match(text) or _SPELLED_OUT.match(text)
        read = _read_spelled(text) if spelled else Unread.MISSING
        rest = text[spelled.end() :] if spelled else ""
        return None if isinstance(read, Unread) or not _is_unit(rest) else read
    literals = _literals(text)
    if len(literals) != 1 or literals[0].number is None:
        return None
    rest = text[match.end() :]
    if _OPERATOR_AFTER.match(rest) or _DENIED_AFTER.match(rest) or not _is_unit(rest):
        return None
    return literals[0].number


def _is_unit(rest: str) -> bool:
    return bool(re.fullmatch(r"(?:[ -]?/?[ ]?[A-Za-z¢°.']+[²³]?(?:\^\{?[23]\}?)?){0,5}", rest))

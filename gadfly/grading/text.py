"""One form for text as people and models type it: characters, LaTeX of literal numbers and words, marks of emphasis."""

import html
import re
import unicodedata
from functools import lru_cache

MAX_RESPONSE_CHARS = 20_000  # only the end of a longer response is read: the last answer counts

_FULLWIDTH = {0xFF01 + offset: 0x21 + offset for offset in range(94)}
_VULGAR = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5", "⅘": "4/5"}
_VULGAR |= {"⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8", "⅐": "1/7", "⅑": "1/9", "⅒": "1/10"}
_CHARACTERS = str.maketrans(
    {**{chr(k): chr(v) for k, v in _FULLWIDTH.items()}, **{k: f" {v} " for k, v in _VULGAR.items()}}
    | {
        **dict.fromkeys("−‐‑‒–﹣", "-"),  # all but the long dashes, which are punctuation
        "\u00a0": " ",
        "\u202f": " ",
        "\u2009": " ",
        "’": "'",
        "‘": "'",
        "“": '"',
        "”": '"',
        "。": ". ",
        "、": ", ",
        "٫": ".",
        "٬": ",",
    }
    | {"\u200b": "", "\ufeff": "", "\0": "", "\r": "\n", "\v": "\n", "\f": "\n", "\u2028": "\n", "\u2029": "\n"}
)
_ANSWER_TAG = re.compile(r"[<\[](/?)(?:final[_ ]?answer|answer|final|result)[>\]]", re.IGNORECASE)
_ENTITY = re.compile(r"&(?:#[0-9]{1,6}|#x[0-9a-fA-F]{1,5}|[A-Za-z]{2,8}[0-9]{0,2});")
_RAISED_TAG = re.compile(r"<sup>\s?([^<>\n]{1,40}?)\s?</sup>", re.IGNORECASE)
_LOWERED_TAG = re.compile(r"<sub>\s?([^<>\n]{1,40}?)\s?</sub>", re.IGNORECASE)
_BREAK_TAG = re.compile(r"</?(?:p|br|div|li|ul|ol|h[1-6]|tr|table)\s?/?>", re.IGNORECASE)
_TAG = re.compile(r"</?(?:b|strong|i|em|u|span|code|tt|big|small|mark|font|td|th)(?:\s[^<>\n]{0,80})?>", re.IGNORECASE)
_STRUCK = re.compile(r"~~[^~\n]{1,200}~~|<(?:s|del|strike)>[^<>\n]{1,200}</(?:s|del|strike)>", re.IGNORECASE)
_THIN_GROUPS = re.compile(r"(?<![0-9.,\u202f\u2009\u00a0])[0-9]{1,3}(?:[\u202f\u2009\u00a0][0-9]{3})+(?![0-9])")
_ALIGNED = re.compile(
    r"\\begin\{(aligned|align\*?|equation\*?|gathered|split|eqnarray\*?)\}(?:\{[a-z]*\})?([^\0]{0,2000}?)\\end\{\1\}"
)
_TWICE_ESCAPED = re.compile(r"(?<!\\)\\\\(?=(?:boxed|frac|dfrac|text|sqrt|pi|left|cdot|times)\b)")
_BARE_BOX = re.compile(r"\\(boxed|fbox)(?:\s+(?=\\?[A-Za-z])|\s*(?=[0-9]))(\\?[A-Za-z]+|[0-9][0-9.,]*[0-9]|[0-9])")
_EMPHASIS = re.compile(
    r"(?<![\w*)}\]$])\*(?=[^\s*])([^*\n]{0,80}?[^\s*])\*(?![\w*({\\])"
    r"|(?<=[0-9.)}])\s\[[0-9]{1,2}\](?=[.,\s]|$)"
)
_BOX_IN_BOX = re.compile(r"\\(?:boxed|fbox)\s?\{\s?(?=\\(?:boxed|fbox)\s?\{)")
_REPEATING = re.compile(
    r"(?<![0-9.])(-?[0-9]{1,9})\.([0-9]{0,9})\s?\\(?:overline|bar|dot)\s?(?:\{\s?([0-9]{1,9})\s?\}|([0-9]))(?!\s?[0-9])"
)
_MAX_NESTED = 20
_GOOD_MARKS = str.maketrans(dict.fromkeys("✅✔✓☑🎉\ufe0f", " "))
_RAISED = {chr(code): str(digit) for digit, code in enumerate((0x2070, 0xB9, 0xB2, 0xB3, *range(0x2074, 0x207A)))}
_RAISED_POWER = re.compile(rf"(?:(?<=[×x*·]10)|(?<=[×x*·]\s10))⁻?[{''.join(_RAISED)}]{{1,6}}")
_CALCULATOR_MARK = re.compile(r"<<[^<>\n]{0,200}>>")
_BOLD = re.compile(r"(?<![\w)}])(?:\*\*|__)|(?:\*\*|__)(?![\w({\\])|`")  # 2**3 keeps its operator
_LONG_MINUS = re.compile(r"(?<![\w)\]}%.,;:!?])(?<![\w)\]}%.,;:!?]\s)[—―⁻](?=\s?[$£€¥₹]?[0-9.\\(])")  # no word before


@lru_cache(maxsize=4096)
def _digit(character: str) -> str:
    """An ASCII digit for a decimal digit of any script."""
    return str(unicodedata.digit(character))


_OTHER_DIGIT = re.compile(r"[^\W0-9A-Za-z_]")


def _digits_of(text: str) -> str:
    if text.isascii():
        return text
    return _OTHER_DIGIT.sub(lambda m: _digit(m[0]) if m[0].isdecimal() else m[0], text)


def _repeating(match: re.Match[str]) -> str:
    whole, fixed, period = match[1], match[2], match[3] or match[4]
    shift, ones = 10 ** len(fixed), 10 ** len(period) - 1
    value = (int(whole.lstrip("-") + fixed) * ones) + int(period)
    return f"{'-' if whole.startswith('-') else ''}{value}/{shift * ones}"


def tidy(text: str) -> str:
    """The text with one form of each character that has several, and without marks that do not change a value."""
    if "\\\\" in text:
        text = text.replace("\\\\", "\\") if _TWICE_ESCAPED.search(text) and "\\begin" not in text else text
    if "&" in text:
        text = _ENTITY.sub(lambda m: html.unescape(m[0]), text)
    text = _THIN_GROUPS.sub(lambda m: re.sub(r"[^0-9]", "", m[0]), _digits_of(text))
    text = _LONG_MINUS.sub("-", text.translate(_CHARACTERS).translate(_GOOD_MARKS))
    if "<" in text or "~~" in text:
        text = _RAISED_TAG.sub(r"^{\1}", _LOWERED_TAG.sub(r"_{\1}", _STRUCK.sub(" ", text)))
        text = _TAG.sub("", _BREAK_TAG.sub("\n", text))
    if "\\begin" in text:
        text = _ALIGNED.sub(lambda m: m[2].replace("\\\\", "\n").replace("&", ""), text)
    if "\\boxed" in text or "\\fbox" in text:
        text = _unnested(_BARE_BOX.sub(r"\\\1{\2}", text))
    text = _EMPHASIS.sub(lambda m: m[1] or "", text)
    text = _REPEATING.sub(_repeating, text)
    text = _RAISED_POWER.sub(lambda m: "^" + "".join(_RAISED.get(sign, "-") for sign in m[0]), text)
    text = _ANSWER_TAG.sub(lambda m: "\n" if m[1] else "\nAnswer: ", text)
    return _BOLD.sub("", re.sub(r"\*\*!", "**.", _CALCULATOR_MARK.sub("", text)))  # emphasis, not a factorial


def _unnested(text: str) -> str:
    """A box whose whole content is a box, as that one."""
    for _ in range(_MAX_NESTED):
        match = _BOX_IN_BOX.search(text)
        if match is None:
            break
        end = text.find("}}", match.end())
        if end < 0:
            return text
        text = text[: match.start()] + text[match.end() : end + 1] + text[end + 2 :]
    return text


def tail(response: str) -> str:
    """The end of a response, cut at a space so that no number is cut in two."""
    if len(response) <= MAX_RESPONSE_CHARS:
        return response
    tail = response[-MAX_RESPONSE_CHARS:]
    space = re.search(r"\s", tail)
    return tail[space.end() :] if space else ""


WRAPPED = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|operatorname)\s?\{([^{}]{0,200})\}")
SIZES = re.compile(r"\\(?:left|right|displaystyle|bigl?|bigr?|Bigl?|Bigr?)(?![a-zA-Z])\s?")
_LATEX_SPACE = re.compile(r"\\[,;:! ]|\\q?quad(?![a-zA-Z])|~")
_GROUPED = re.compile(r"(?<=[0-9])(?:\{,\}|,\\!|\\[,;:!]) ?(?=[0-9]{3}(?![0-9]))")
_DEGREES = re.compile(r"\^\s?\{?\s?\\circ\s?\}?|\\degree(?![a-zA-Z])|°")
_FRACTION = re.compile(
    r"\\[dtc]?frac\s?(?:\{\s?(-?[0-9.,]{1,40})\s?\}|([0-9]))\s?(?:\{\s?(-?[0-9.,]{1,40})\s?\}|([0-9]))"
)
_MATH = re.compile(
    r"\$\$([^$]{1,500})\$\$|\$([^$\n]{1,500})\$(?![0-9])|\\\((.{1,500}?)\\\)|\\\[(.{1,500}?)\\\]", re.DOTALL
)
_WORD = re.compile(r"[A-Za-z]{3,}")


def math_segments(text: str) -> list[tuple[int, int, str]]:
    """Start, end and content of each piece set as math. A pair of dollar signs around prose is two prices."""
    segments = []
    for match in _MATH.finditer(text):
        content = next(group for group in match.groups() if group is not None)
        if not _WORD.search(re.sub(r"\\[A-Za-z]+(?:\{[A-Za-z ]*\})?", "", content)):
            segments.append((match.start(), match.end(), content))
    return segments


def unlatex(text: str) -> str:
    """The text with literal numbers and words freed of their LaTeX; other LaTeX keeps its commands."""
    for start, end, content in reversed(math_segments(text)):
        text = f"{text[:start]} {content} {text[end:]}"
    text = _GROUPED.sub("", text).replace("\\$", "$").replace("\\%", "%").replace("\\\\", " ")
    text = _DEGREES.sub(" degrees ", _LATEX_SPACE.sub(" ", SIZES.sub("", text)))
    text = re.sub(r"(?<=[A-Za-z])\s{1,9}\^", "^", WRAPPED.sub(r" \1 ", text))  # \text{cm}^2
    text = re.sub(r"\b(sq|cu)\.\s?(?=[A-Za-z])", r"\1 ", text)
    text = _FRACTION.sub(lambda m: f" {m[1] or m[2]}/{m[3] or m[4]} ", text)
    text = text.replace("\\times", "×").replace("\\cdot", "×").replace("\\approx", "≈").replace("\\div", "÷")
    text = text.replace(">=", "≥").replace("<=", "≤").replace("!=", "≠")
    return re.sub(r"-\s(?=[0-9]+/[0-9])", "-", re.sub(r"[ \t]+", " ", text)).strip()

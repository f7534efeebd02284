"""The blocks of the training wall: which questions are near-duplicates of each other.

A question has keys, and questions that share a key are near. One key is of the question's own text: equal for all
spellings, and for the question with a wrapper around it (`Question: `, `Solve this problem:`, markdown, `Show your
work.`). Twelve keys are of the text with its numbers masked: bands of a MinHash signature. Two texts share at least one
of them with a chance of 94 % at a Jaccard similarity of 0.8, 64 % at 0.7, 9 % at 0.5 and 2 % at 0.4, over pairs of
neighbouring words (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4). Keys hold no text.

`Blocks` decides by them. Why these rules: docs/decisions/the-wall.md. `gadfly/store/wall.py` stores the keys.
"""

import hashlib
import re
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rensa import RMinHash

from gadfly.records import Split
from gadfly.settings import SplitBlocks
from gadfly.store.split import normalise_question

BANDS = 12
ROWS = 7  # hashes of a band
LARGE = 20
"""From this number of questions on, a block can be opened; more of them are not counted."""

_SHINGLE = 2  # words
_SEED = 42  # of the hash functions: stored keys depend on it
_LONGEST = 16_000  # characters that are compared; of a longer question, half of them at each end

# ------------------------------------------------------------------------------------------------------------- the text


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


# A sentence of these words alone, at least one of which is a head, says what to do with a question.
_HEADS = _set(
    """
    answer answers assistant exercise exercises expert explain give hello help hey hi homework human input instruction
    instructions problem problems prompt provide put puzzle q query question questions reason reply respond show
    solution solve step steps task teacher thanks think tutor user work working write
    aufgabe domanda ejercicio exercice frage pregunta problema problème вопрос задача 问题 题目 問題 題目 質問
    """
)
_FILLERS = _set(
    """
    a above accurately after all am an and any are as at be before below best box boxed \\boxed breath briefly by
    calculate can carefully clearly compute concisely correct correctly could deep detail detailed directly each end
    every explanation final find first following for given helpful here i in inside is it its just kindly let let's lets
    math mathematical mathematician mathematics maths me my need next no now number numeric of on only or our out output
    please present reasoning request result results single so solutions state step-by-step step-wise stuck system take
    tasks puzzles thank that the then there these this to try us use using value we will with within without word would
    you your
    """
)
_MARKUP = re.compile(
    r"(?<![\w)*])(?:\*{2,3}|_{2,3})(?=[^\W_])"  # emphasis opens before a word; 2**3 and 2 ** 3 are powers
    r"|(?<=[^\s*_])(?:\*{2,3}|_{2,3})(?=\s|$)"  # and ends behind one
    r"|^(?:\#{1,6}\ |>+\ |[-*+•]\ (?=[^\W\d_]))|^'''\w*$|</?[a-z][a-z_]*>",
    re.VERBOSE,
)
_BREAK = re.compile(r"(?<=[.!?:;)\]])\*?\s+|(?<=[\u3400-\u9fff]:)")
_WORD = re.compile(r"[^\s.,:;!?()\[\]{}'\"*#]+(?:'[a-z]+)?")
_NUMBERS = _set(
    """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion
    """
)
# A number, a character of a script that is written without spaces, a word, or any other sign that is no punctuation.
_TOKEN = re.compile(r"\d(?:[\d.,]*\d)?|[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\d]+|[^\w\s.,?!:;'\"]")


def without_wrapper(question: str) -> str:
    """The normalised question without markup, and without instructions at its beginning and end.

    A text of instructions alone stays as it is.
    """
    return _unwrapped(_sentences(question))


def _sentences(question: str) -> list[str]:
    sentences: list[str] = []
    for line in question.splitlines():
        text = _MARKUP.sub("", normalise_question(line))
        sentences += filter(None, (sentence.strip(" ?.,;:") for sentence in _BREAK.split(text)))
    return sentences


def _unwrapped(sentences: Sequence[str], *, numbered: bool = False) -> str:
    """The sentences between the instructions. If `numbered`, `question 12` and `3)` are instructions too."""
    start, end = 0, len(sentences)
    while start < end and _is_instruction(sentences[start], numbered=numbered):
        start += 1
    while end > start and _is_instruction(sentences[end - 1], numbered=numbered):
        end -= 1
    return " ".join(sentences[start:end] or sentences)


def _is_instruction(sentence: str, *, numbered: bool) -> bool:
    has_head = sentence == "a"  # of `A:`, for the answer
    for word in _WORD.findall(sentence):
        if word in _HEADS:
            has_head = True
        elif word not in _FILLERS and not (numbered and word.isdecimal()):
            return False
    # A line of signs is no part of a question. A number may be all of it.
    return has_head or not any(map(str.isalpha if numbered else str.isalnum, sentence))


def _words(text: str) -> list[str]:
    """The words of a text; every number, also written as a word, and every row of numbers is `#`."""
    words: list[str] = []
    for token in _TOKEN.findall(text):
        word = "#" if token[0].isdecimal() or token in _NUMBERS else token
        if word != "#" or words[-1:] != ["#"]:
            words.append(word)
    return words


# ------------------------------------------------------------------------------------------------------------- the keys


@dataclass(frozen=True, slots=True)
class BlockKeys:
    """The keys of a question, as signed integers of 64 bits."""

    same: int  # of the question itself, without its wrapper
    near: tuple[int, ...]  # of its numbers-only twins and near-duplicates: one for each band

    def __iter__(self) -> Iterator[int]:
        yield self.same
        yield from self.near


def block_keys(question: str) -> BlockKeys:
    """The keys of a question. They never change: a release that computes others has to compute the stored ones anew."""
    if len(question) > _LONGEST:
        same = normalise_question(question)
        sentences = _sentences(f"{question[: _LONGEST // 2]}\n{question[-_LONGEST // 2 :]}")
    else:
        sentences = _sentences(question)
        same = _unwrapped(sentences)
    words = _words(_unwrapped(sentences, numbered=True))
    pairs = [" ".join(words[place : place + _SHINGLE]) for place in range(max(1, len(words) - _SHINGLE + 1))]
    signature = RMinHash(num_perm=BANDS * ROWS, seed=_SEED)
    signature.update(pairs)
    hashes = struct.pack(f"<{BANDS * ROWS}I", *signature.digest())
    width = len(hashes) // BANDS
    return BlockKeys(
        same=_key(b"same", same.encode()),
        near=tuple(_key(b"near%d" % band, hashes[band * width : (band + 1) * width]) for band in range(BANDS)),
    )


def _key(kind: bytes, content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8, person=kind).digest(), signed=True)


# --------------------------------------------------------------------------------------------------------- the decision


@dataclass(slots=True)
class BlockKey:
    """What is known of a key."""

    split: Split  # the side of the first question with it; only a retirement (`gadfly/store/wear.py`) changes it
    questions: int = 1  # questions with it; no more than `LARGE` are counted
    in_training: bool = False  # whether any of them is on the train side
    is_open: bool = False  # whether later questions with it are decided one by one


@dataclass(slots=True)
class Blocks:
    """The sides of questions as they arrive, by the keys that they share.

    Args:
        keys: the stored keys of the questions that arrive. `place` changes them and adds those that are new.
        recent: how many of the newest questions are on each side.
        heldout_share: the share of questions that is held out.
        rule: which keys bind.
    """

    keys: dict[int, BlockKey]
    recent: Counter[Split]
    heldout_share: float
    rule: SplitBlocks = SplitBlocks.NEAR
    changed: set[int] = field(default_factory=set)  # keys that `place` changed or added

    def place(self, keys: BlockKeys, own: Split, *, is_fixed: bool = False) -> Split:
        """The side of a question: that of its block, or `own` if it is the first of one.

        With `is_fixed`, the question is stored already and `own` is its side; only its keys are new.
        """
        split = own if is_fixed else self._of_block(keys) or own
        for key in keys:
            self._enter(key, split)
        if not is_fixed:
            self.recent[split] += 1
        return split

    def _of_block(self, keys: BlockKeys) -> Split | None:
        if (same := self.keys.get(keys.same)) is not None:
            return same.split
        if self.rule is SplitBlocks.EXACT:
            return None
        binding = {key: found for key in keys.near if (found := self.keys.get(key)) is not None and not found.is_open}
        split = self._majority(binding)
        large = [key for key, found in binding.items() if found.questions >= LARGE]
        if split is None or not large or not self._is_starved(_other(split)):
            return split
        for key in large:
            binding.pop(key).is_open = True
            self.changed.add(key)
        return self._majority(binding)

    @staticmethod
    def _majority(binding: Mapping[int, BlockKey]) -> Split | None:
        heldout = sum(key.split is Split.HELDOUT for key in binding.values())
        if not binding:
            return None
        return Split.HELDOUT if 2 * heldout >= len(binding) else Split.TRAIN

    def _is_starved(self, split: Split) -> bool:
        """Whether a side has less than a quarter of its share of the newest questions."""
        share = self.heldout_share if split is Split.HELDOUT else 1 - self.heldout_share
        return 4 * self.recent[split] < share * self.recent.total()

    def _enter(self, key: int, split: Split) -> None:
        found = self.keys.get(key)
        is_train = split is Split.TRAIN
        if found is None:
            self.keys[key] = BlockKey(split, in_training=is_train)
        elif found.questions < LARGE or (is_train and not found.in_training):
            found.questions = min(LARGE, found.questions + 1)
            found.in_training |= is_train
        else:
            return
        self.changed.add(key)


def _other(split: Split) -> Split:
    return Split.TRAIN if split is Split.HELDOUT else Split.HELDOUT

"""The label of an answer from the votes about it. Pure functions; `gadfly/store/labels.py` reads and stores the votes.

A vote is one key's opinion about one text: its word (feedback with `correct`), the grade of the text against a
reference that it gave, or its rating. A key has one vote per text. A class (right or wrong) is called by a voter, a key
and the source of its votes, with two probabilities: to call a right answer right, and a wrong answer wrong. `fit`
estimates them where several votes are about one text, by the EM algorithm of Dawid and Skene (1979) with two classes
and a prior.

`opinion` is the rule. It weighs the votes under equal chances of both classes: the share of right answers in the
traffic decides how sure a label is (`probability`) and never what it is. Three limits hold whatever the estimates are:

- A voter that is worse than chance counts nothing. Its votes are never turned around.
- A grade is overruled by at least two other keys, which are more than those that agree with it. A single key's word
  against the grade of another key's reference changes nothing.
- References that disagree about a text are a conflict, which an admin resolves.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median
from typing import Any, Self
from uuid import UUID

from gadfly.records import Ruling


class LabelSource(StrEnum):
    """The source of a label."""

    PERSON = "person"  # feedback with `correct`
    IMPORT = "import"  # an imported row with `correct`
    REFERENCE = "reference"  # the answer was graded against a reference
    RATING = "rating"  # a rating, which is weaker than the others: it teaches, and measures no critic
    ADMIN = "admin"  # an admin decided


class VoteAgreement(StrEnum):
    """How far the votes about a text agree."""

    NONE = "none"  # there is no vote that counts
    AGREED = "agreed"
    DISPUTED = "disputed"  # some votes differ from the label
    CONFLICT = "conflict"  # the votes decide nothing, so there is no label


@dataclass(frozen=True, slots=True)
class Vote:
    """One key's opinion about one text. The key None is the operator: imports, and callers without a key."""

    key_id: UUID | None
    source: LabelSource
    is_right: bool

    @property
    def voter(self) -> "Voter":
        return Voter(self.key_id, self.source)


@dataclass(frozen=True, slots=True)
class Voter:
    """Votes of one key from one source, which have one reliability."""

    key_id: UUID | None
    source: LabelSource


Votes = tuple[Vote, ...]


def one_vote_each(statements: Sequence[Vote]) -> Votes:
    """The votes of a text: one per key, in a fixed order. `statements` are all that was said, the oldest first.

    A key's newest word decides, without one the grade against its newest reference, and without both its newest rating.
    A word that agrees with the key's own grade is a vote by reference.
    """
    words: dict[UUID | None, Vote] = {}
    grades: dict[UUID | None, Vote] = {}
    ratings: dict[UUID | None, Vote] = {}
    of_source = {LabelSource.REFERENCE: grades, LabelSource.RATING: ratings}
    for statement in statements:
        of_source.get(statement.source, words)[statement.key_id] = statement
    votes = (
        ratings
        | grades
        | {key: word for key, word in words.items() if key not in grades or grades[key].is_right is not word.is_right}
    )
    return tuple(votes[key] for key in sorted(votes, key=str))


# --------------------------------------------------------------------------------------------------------- reliability


@dataclass(frozen=True, slots=True)
class VoterReliability:
    """A voter's two probabilities, each with the number of answers that it rests on besides the prior."""

    right: float  # calls a right answer right
    wrong: float  # calls a wrong answer wrong
    items_right: float = 0.0
    items_wrong: float = 0.0


@dataclass(frozen=True, slots=True)
class _Prior:
    accuracy: float
    weight: float  # in answers, per class


_PRIORS = {
    LabelSource.PERSON: _Prior(0.95, 20),
    LabelSource.IMPORT: _Prior(0.95, 20),
    LabelSource.REFERENCE: _Prior(0.98, 60),
    LabelSource.RATING: _Prior(0.88, 20),  # one is just decisive, and two do not outweigh a word
}
GRADE_ACCURACY = _PRIORS[LabelSource.REFERENCE].accuracy
"""The assumed probability that a grade is right, without votes that tell more."""

_ROUNDS = 200  # of the EM algorithm, at most
_CLOSE = 1e-6  # it ends when no probability changes by more
_LEAST, _MOST = 0.02, 0.995  # bounds of a probability
_SHARE_WEIGHT = 2.0  # of each class, in answers, in the prior of the share of right answers


@dataclass(frozen=True, slots=True)
class LabelModel:
    """The reliability of each voter, and the share of right answers among all that have votes."""

    right_share: float = 0.5
    voters: Mapping[Voter, VoterReliability] = field(default_factory=dict)

    def reliability(self, voter: Voter) -> VoterReliability:
        """The voter's reliability: the prior of its source where there is no estimate."""
        known = self.voters.get(voter)
        prior = _PRIORS[voter.source].accuracy
        return VoterReliability(prior, prior) if known is None else known

    def to_json(self) -> dict[str, Any]:
        """The model as JSON values."""
        return {
            "right_share": self.right_share,
            "voters": [
                {
                    "key": None if voter.key_id is None else str(voter.key_id),
                    "source": voter.source.value,
                    "right": known.right,
                    "wrong": known.wrong,
                    "items_right": known.items_right,
                    "items_wrong": known.items_wrong,
                }
                for voter, known in self.voters.items()
            ],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The model that `to_json` wrote."""
        voters = {
            Voter(_key(entry["key"]), LabelSource(entry["source"])): VoterReliability(
                entry["right"], entry["wrong"], entry["items_right"], entry["items_wrong"]
            )
            for entry in values["voters"]
        }
        return cls(values["right_share"], voters)


def votes_to_json(votes: Votes) -> list[dict[str, Any]]:
    """Votes as JSON values; equal votes give equal values."""
    return [
        {
            "key": None if vote.key_id is None else str(vote.key_id),
            "source": vote.source.value,
            "right": vote.is_right,
        }
        for vote in votes
    ]


def votes_from_json(values: Sequence[Mapping[str, Any]]) -> Votes:
    """The votes that `votes_to_json` wrote."""
    return tuple(Vote(_key(entry["key"]), LabelSource(entry["source"]), entry["right"]) for entry in values)


def _key(value: str | None) -> UUID | None:
    return None if value is None else UUID(value)


@dataclass(frozen=True, slots=True)
class Pattern:
    """So many answers with the same votes, and with the same truth where an admin decided it."""

    votes: Votes
    known: bool | None
    answers: int

    @property
    def is_informative(self) -> bool:
        """Whether the votes say something about each other, or the truth about the votes."""
        return len(self.votes) > 1 or (self.known is not None and bool(self.votes))


def fit(patterns: Sequence[Pattern]) -> LabelModel:
    """The reliabilities that explain the votes best, given the priors.

    Only answers with several votes, or with a known truth, tell about reliability: a voter's own share of right answers
    says nothing about its errors. Time: proportional to the number of patterns.
    """
    informative = [pattern for pattern in patterns if pattern.is_informative]
    voters = {vote.voter for pattern in informative for vote in pattern.votes}
    model = LabelModel(0.5, {voter: LabelModel().reliability(voter) for voter in voters})
    for _ in range(_ROUNDS):
        chances = [_chance(pattern, model) for pattern in informative]
        fitted = _maximised(informative, chances, voters)
        change = max(
            (
                max(abs(new.right - model.voters[voter].right), abs(new.wrong - model.voters[voter].wrong))
                for voter, new in fitted.voters.items()
            ),
            default=0.0,
        )
        model = fitted
        if change < _CLOSE:
            break
    return LabelModel(_right_share(patterns, model), model.voters)


def _maximised(patterns: Sequence[Pattern], chances: Sequence[float], voters: set[Voter]) -> LabelModel:
    hits = {voter: [0.0, 0.0] for voter in voters}  # on wrong answers, on right answers
    items = {voter: [0.0, 0.0] for voter in voters}
    for pattern, chance in zip(patterns, chances, strict=True):
        weights = (pattern.answers * (1 - chance), pattern.answers * chance)
        for vote in pattern.votes:
            hits[vote.voter][vote.is_right] += weights[vote.is_right]
            for kind in (0, 1):
                items[vote.voter][kind] += weights[kind]

    def rate(voter: Voter, kind: int) -> float:
        prior = _PRIORS[voter.source]
        value = (prior.accuracy * prior.weight + hits[voter][kind]) / (prior.weight + items[voter][kind])
        return min(max(value, _LEAST), _MOST)

    fitted = {
        voter: VoterReliability(rate(voter, 1), rate(voter, 0), items[voter][1], items[voter][0]) for voter in voters
    }
    return LabelModel(_share(patterns, chances), fitted)


def _share(patterns: Sequence[Pattern], chances: Sequence[float]) -> float:
    right = sum(pattern.answers * chance for pattern, chance in zip(patterns, chances, strict=True))
    return (_SHARE_WEIGHT + right) / (2 * _SHARE_WEIGHT + sum(pattern.answers for pattern in patterns))


def _right_share(patterns: Sequence[Pattern], model: LabelModel) -> float:
    voted = [pattern for pattern in patterns if pattern.votes]
    share = 0.5
    for _ in range(_ROUNDS):
        before = share
        share = _share(voted, [_chance(pattern, LabelModel(share, model.voters)) for pattern in voted])
        if abs(share - before) < _CLOSE:
            break
    return share


def _chance(pattern: Pattern, model: LabelModel) -> float:
    if pattern.known is not None:
        return float(pattern.known)
    return _logistic(_logit(model.right_share) + sum(_weight(vote, model) for vote in pattern.votes))


def _weight(vote: Vote, model: LabelModel) -> float:
    """The evidence of a vote for "right", in nats: negative for a vote that is more likely about a wrong answer."""
    known = model.reliability(vote.voter)
    if vote.is_right:
        return math.log(known.right / (1 - known.wrong))
    return math.log((1 - known.right) / known.wrong)


def _logit(share: float) -> float:
    return math.log(share / (1 - share))


def _logistic(nats: float) -> float:
    return 1 / (1 + math.exp(-nats)) if nats >= 0 else math.exp(nats) / (1 + math.exp(nats))


# ------------------------------------------------------------------------------------------------------------ the rule

DECISIVE = math.log(0.85 / 0.15)
"""The evidence, in nats, below which votes decide nothing: a chance of 85 % under equal chances of both classes."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """What the votes about a text say together."""

    is_right: bool | None  # None: no vote counts, or the votes decide nothing
    probability: float | None  # that the answer is right, at the traffic's share of right answers; None without votes
    source: LabelSource | None  # the strongest among the votes for the label
    key_id: UUID | None  # the only key whose vote supports the label; None: several keys, or the operator
    standing: VoteAgreement


_STRENGTH = (LabelSource.REFERENCE, LabelSource.PERSON, LabelSource.IMPORT, LabelSource.RATING)  # the strongest first
_NO_OPINION = Opinion(None, None, None, None, VoteAgreement.NONE)


def opinion(votes: Votes, model: LabelModel, *, distrusted: frozenset[UUID] = frozenset()) -> Opinion:
    """The label that the votes give; votes of distrusted keys do not count. The module's docstring has the rule."""
    counted = tuple(vote for vote in votes if vote.key_id not in distrusted)
    if not counted:
        return _NO_OPINION
    evidence = sum(_evidence(vote, model) for vote in counted)
    probability = _logistic(_logit(model.right_share) + evidence)
    is_right = _decision(counted, evidence)
    if is_right is None:
        return Opinion(None, probability, None, None, VoteAgreement.CONFLICT)
    support = [vote for vote in counted if vote.is_right is is_right]
    return Opinion(
        is_right,
        probability,
        min((vote.source for vote in support), key=_STRENGTH.index),
        support[0].key_id if len(support) == 1 else None,
        VoteAgreement.AGREED if len(support) == len(counted) else VoteAgreement.DISPUTED,
    )


def _evidence(vote: Vote, model: LabelModel) -> float:
    weight = _weight(vote, model)
    return max(weight, 0.0) if vote.is_right else min(weight, 0.0)


def _decision(votes: Votes, evidence: float) -> bool | None:
    by_votes = evidence > 0 if abs(evidence) >= DECISIVE else None
    graded = {vote.is_right for vote in votes if vote.source is LabelSource.REFERENCE}
    if len(graded) != 1:
        return None if graded else by_votes
    (by_grade,) = graded
    against = sum(vote.is_right is not by_grade for vote in votes)
    if against == 0:
        return by_votes  # no label where the key's references are known to be unreliable
    is_majority = against > 1 and against > len(votes) - against
    if by_votes is by_grade or (by_votes is None and not is_majority):
        return by_grade
    return by_votes if is_majority else None


@dataclass(frozen=True, slots=True)
class AnswerLabel:
    """The label of an answer."""

    is_right: bool | None  # None: it has none
    source: LabelSource | None
    key_id: UUID | None  # the only key that supports it; None: several keys, or the operator, or an admin decided


def label(
    found: Opinion, *, frozen: AnswerLabel | None, ruling: Ruling | None, distrusted: frozenset[UUID]
) -> AnswerLabel:
    """The label of an answer: an admin's ruling, else the frozen label, else what the votes say.

    A frozen label that only a distrusted key supports does not count.
    """
    match ruling:
        case Ruling.RIGHT | Ruling.WRONG:
            return AnswerLabel(ruling is Ruling.RIGHT, LabelSource.ADMIN, None)
        case Ruling.NONE:
            return AnswerLabel(None, None, None)
    if frozen is not None and frozen.key_id not in distrusted:
        return frozen
    return AnswerLabel(found.is_right, found.source, found.key_id)


def certainty(
    is_right: bool, votes: Votes | None, ruling: Ruling | None, model: LabelModel, distrusted: frozenset[UUID]
) -> float:
    """The probability that the label of an answer is true; 1 for an admin's ruling.

    Votes that were not counted yet (None), and a frozen label whose votes are gone, count as one person's word.
    """
    if ruling is not None:
        return 1.0
    probability = opinion(votes or (), model, distrusted=distrusted).probability
    if probability is None:
        return _PRIORS[LabelSource.PERSON].accuracy
    return probability if is_right else 1 - probability


# ------------------------------------------------------------------------------------- keys that contradict the others


@dataclass(frozen=True, slots=True)
class Contradiction:
    """A voter whose votes contradict those of the others more often than the others' errors explain."""

    voter: Voter
    truth: bool | None  # the class that it calls wrongly, as the others see it; None: both
    answers: float  # with votes of others
    contradictions: float
    expected: float  # contradictions, if it were as reliable as the others


_FALSE_ALARM = 0.001  # chance to name any voter of a deployment whose voters are equally reliable
_LEAST_EXCESS = 0.05  # of the answers; smaller differences between voters are normal
_LEAST_ANSWERS = 10


def contradictions(patterns: Sequence[Pattern], model: LabelModel) -> list[Contradiction]:
    """The voters that contradict the others, at most one finding each, the worst first.

    A voter is compared with what the other votes about the same texts say, and the number of contradictions with that
    of a voter whose reliability is the median of the others'. The binomial distribution with the same mean bounds the
    chance of so many (Hoeffding 1956).
    """
    about: dict[Voter, list[Pattern]] = {}
    for pattern in patterns:
        if pattern.is_informative:
            for vote in pattern.votes:
                about.setdefault(vote.voter, []).append(pattern)
    voters = [voter for voter, seen in about.items() if sum(each.answers for each in seen) >= _LEAST_ANSWERS]
    voters.sort(key=lambda voter: (str(voter.key_id), voter.source.value))
    limit = _FALSE_ALARM / max(1, 3 * len(voters))
    share = _share(patterns, [_chance(pattern, model) for pattern in patterns])
    found = []
    for voter in voters:
        seen_by_class = _seen_by_others(
            about[voter], voter, LabelModel(share, model.voters), _peer(voter, voters, model)
        )
        cases = [
            Contradiction(voter, truth, *(sum(seen_by_class[kind][part] for kind in kinds) for part in range(3)))
            for truth, kinds in ((None, (True, False)), (True, (True,)), (False, (False,)))
        ]
        telling = [(_tail(case), case) for case in cases if _is_large(case)]
        if telling and min(telling, key=lambda pair: pair[0])[0] < limit:
            found.append(min(telling, key=lambda pair: pair[0])[1])
    return sorted(found, key=lambda case: case.expected - case.contradictions)


def _peer(voter: Voter, voters: Sequence[Voter], model: LabelModel) -> VoterReliability:
    others = [
        model.reliability(other) for other in voters if other.source is voter.source and other.key_id != voter.key_id
    ]
    prior = _PRIORS[voter.source].accuracy
    right = [other.right for other in others if other.items_right >= _LEAST_ANSWERS]
    wrong = [other.wrong for other in others if other.items_wrong >= _LEAST_ANSWERS]
    return VoterReliability(min(prior, median(right or [prior])), min(prior, median(wrong or [prior])))


def _seen_by_others(
    patterns: Sequence[Pattern], voter: Voter, model: LabelModel, peer: VoterReliability
) -> dict[bool, list[float]]:
    """Answers, contradictions and expected contradictions, by the class that the others see."""
    seen = {True: [0.0, 0.0, 0.0], False: [0.0, 0.0, 0.0]}
    for pattern in patterns:
        own = [vote for vote in pattern.votes if vote.voter == voter]
        rest = Pattern(
            tuple(vote for vote in pattern.votes if vote.key_id != voter.key_id), pattern.known, pattern.answers
        )
        if not own or not (rest.votes or rest.known is not None):
            continue
        chance = _chance(rest, model)
        truth = chance >= 0.5
        says_right = chance * peer.right + (1 - chance) * (1 - peer.wrong)
        counts = seen[truth]
        counts[0] += pattern.answers
        counts[1] += pattern.answers * (own[0].is_right is not truth)
        counts[2] += pattern.answers * ((1 - says_right) if truth else says_right)
    return seen


def _is_large(case: Contradiction) -> bool:
    return (
        case.answers >= _LEAST_ANSWERS
        and case.contradictions > case.expected + 1
        and case.contradictions - case.expected >= _LEAST_EXCESS * case.answers
    )


def _tail(case: Contradiction) -> float:
    """The chance of so many contradictions or more."""
    count, least = round(case.answers), math.ceil(case.contradictions)
    rate = min(max(case.expected / case.answers, 1e-9), 1 - 1e-9)

    def log_chance(hits: int) -> float:
        ways = math.lgamma(count + 1) - math.lgamma(hits + 1) - math.lgamma(count - hits + 1)
        return ways + hits * math.log(rate) + (count - hits) * math.log1p(-rate)

    return math.fsum(math.exp(log_chance(hits)) for hits in range(least, count + 1))

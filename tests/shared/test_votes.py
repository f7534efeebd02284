"""Votes: which one counts, what they say together, how reliable voters are, and who contradicts the others.

`tests/store/test_labels.py` has the table of the rule, read from a database by everything that uses a label.
"""

from uuid import UUID

import pytest

from bench.labels import BAD, CASES, HONEST_ERROR, flipped_in_rare_class, honest, simulate
from gadfly.records import Ruling
from gadfly.votes import (
    AnswerLabel,
    Contradiction,
    LabelModel,
    LabelSource,
    Opinion,
    Pattern,
    Vote,
    VoteAgreement,
    Voter,
    VoterReliability,
    Votes,
    _is_large,
    _peer,
    _seen_by_others,
    _tail,
    certainty,
    contradictions,
    fit,
    label,
    one_vote_each,
    opinion,
    votes_from_json,
    votes_to_json,
)

A, B, C, D = (UUID(int=number) for number in range(1, 5))
PERSON, IMPORT, REFERENCE = LabelSource.PERSON, LabelSource.IMPORT, LabelSource.REFERENCE


def word(key: UUID | None, is_right: bool) -> Vote:
    return Vote(key, PERSON, is_right)


def grade(key: UUID | None, is_right: bool) -> Vote:
    return Vote(key, REFERENCE, is_right)


def test_a_key_has_one_vote_and_votes_have_one_order() -> None:
    said = [word(B, True), grade(A, True), word(A, False), word(B, False), grade(C, True), word(C, True)]
    assert one_vote_each(said) == (word(A, False), word(B, False), grade(C, True))
    by_key = sorted(said, key=lambda vote: str(vote.key_id), reverse=True)  # a stable sort keeps each key's order
    assert one_vote_each(by_key) == one_vote_each(said)
    assert votes_from_json(votes_to_json(one_vote_each([*said, word(None, True)]))) == (
        word(A, False),
        word(B, False),
        grade(C, True),
        word(None, True),
    )


def test_two_persons_overrule_a_grade_by_hand() -> None:
    found = opinion((grade(A, True), word(B, False), word(C, False)), LabelModel())
    # ln(0.98 / 0.02) - 2 ln(0.95 / 0.05) = 3.892 - 5.889 = -1.997
    assert found.probability == pytest.approx(0.1195, abs=1e-3)
    assert (found.is_right, found.source, found.key_id, found.standing) == (False, PERSON, None, VoteAgreement.DISPUTED)


def test_the_share_of_right_answers_decides_how_sure_a_label_is_and_not_what_it_is() -> None:
    votes = (word(A, False),)
    found = opinion(votes, LabelModel(right_share=0.95))
    assert found.is_right is False
    assert found.probability == pytest.approx(0.5)
    assert certainty(False, votes, None, LabelModel(right_share=0.95), frozenset()) == pytest.approx(0.5)
    assert certainty(False, votes, Ruling.WRONG, LabelModel(right_share=0.95), frozenset()) == 1.0


def test_the_certainty_is_that_of_the_label() -> None:
    sure, model, nothing = (word(A, True),), LabelModel(), frozenset[UUID]()
    assert certainty(True, sure, None, model, nothing) == pytest.approx(0.95)
    assert certainty(False, sure, None, model, nothing) == pytest.approx(0.05), "a frozen label that a vote denies"
    assert certainty(False, None, None, model, nothing) == 0.95, "not counted yet: one person's word"
    assert certainty(True, sure, None, model, frozenset({A})) == 0.95, "its votes are gone"


def known(**reliabilities: VoterReliability) -> LabelModel:
    keys = {"a": A, "b": B, "c": C}
    return LabelModel(0.5, {Voter(keys[name], PERSON): value for name, value in reliabilities.items()})


RELIABILITIES: list[tuple[Votes, LabelModel, bool | None, str]] = [
    (
        (word(A, True),),
        known(a=VoterReliability(0.3, 0.3)),
        None,
        "worse than chance is no evidence, and is not inverted",
    ),
    ((word(A, True),), known(a=VoterReliability(0.8, 0.8)), None, "a voter that flips a fifth decides nothing alone"),
    ((word(A, False),), known(a=VoterReliability(0.5, 0.99)), None, "who calls half of the right answers wrong"),
    ((word(A, True),), known(a=VoterReliability(0.5, 0.99)), True, "is believed about right ones"),
    (
        (word(A, True), word(B, False)),
        known(a=VoterReliability(0.99, 0.99), b=VoterReliability(0.7, 0.7)),
        True,
        "the better",
    ),
    (
        (grade(A, True), word(B, False), word(C, False)),
        known(b=VoterReliability(0.6, 0.6), c=VoterReliability(0.6, 0.6)),
        True,
        "unreliable keys do not overrule a grade",
    ),
    (
        (grade(A, True), word(B, False)),
        LabelModel(0.5, {Voter(A, REFERENCE): VoterReliability(0.6, 0.6)}),
        None,
        "a single word against a reference that is known to be unreliable: a conflict, never the word",
    ),
    (
        (grade(A, True), grade(B, True), word(C, False), word(D, False)),
        LabelModel(0.5, {Voter(key, REFERENCE): VoterReliability(0.6, 0.6) for key in (A, B)}),
        None,
        "as many words as grades are no majority, although these grades are unreliable: a conflict",
    ),
    (
        (grade(A, True),),
        LabelModel(0.5, {Voter(A, REFERENCE): VoterReliability(0.6, 0.6)}),
        None,
        "references of a key that are known to be unreliable give no label",
    ),
]


@pytest.mark.parametrize(("votes", "reliabilities", "is_right", "why"), RELIABILITIES)
def test_labels_depend_on_reliability(votes: Votes, reliabilities: LabelModel, is_right: bool | None, why: str) -> None:
    assert opinion(votes, reliabilities).is_right is is_right, why


def test_a_ruling_counts_more_than_a_frozen_label_and_that_more_than_votes() -> None:
    votes = Opinion(False, 0.1, PERSON, B, VoteAgreement.AGREED)
    frozen = AnswerLabel(True, REFERENCE, A)
    nothing: frozenset[UUID] = frozenset()
    assert label(votes, frozen=None, ruling=None, distrusted=nothing) == AnswerLabel(False, PERSON, B)
    assert label(votes, frozen=frozen, ruling=None, distrusted=nothing) == frozen
    assert label(votes, frozen=frozen, ruling=None, distrusted=frozenset({A})) == AnswerLabel(False, PERSON, B)
    ruled = label(votes, frozen=frozen, ruling=Ruling.WRONG, distrusted=nothing)
    assert ruled == AnswerLabel(False, LabelSource.ADMIN, None)
    assert label(votes, frozen=frozen, ruling=Ruling.NONE, distrusted=nothing) == AnswerLabel(None, None, None)


# ---------------------------------------------------------------------------------------------------------- reliability


def test_without_a_second_vote_no_key_is_measured() -> None:
    model = fit([Pattern((word(A, True),), None, 90), Pattern((word(B, False),), None, 10)])
    assert model.voters == {}
    assert model.right_share > 0.9


def test_reliability_against_known_answers_by_hand() -> None:
    """19 of 20 by the prior, and 60 of 80 right answers called right: (19 + 60) / (20 + 80)."""
    patterns = [Pattern((word(A, True),), True, 60), Pattern((word(A, False),), True, 20)]
    found = fit(patterns).voters[Voter(A, PERSON)]
    assert found.right == pytest.approx(0.79)
    assert found.wrong == pytest.approx(0.95)
    assert (found.items_right, found.items_wrong) == (80, 0)


def test_the_key_that_contradicts_three_others_is_the_unreliable_one() -> None:
    patterns = [
        Pattern((word(key, truth), word(D, not truth)), None, 20) for key in (A, B, C) for truth in (True, False)
    ]
    patterns += [Pattern((word(A, truth), word(B, truth)), None, 20) for truth in (True, False)]
    model = fit(patterns)
    assert model.reliability(Voter(D, PERSON)).right < 0.4
    for key in (A, B, C):
        assert model.reliability(Voter(key, PERSON)).right > 0.9
    assert [case.voter.key_id for case in contradictions(patterns, model)] == [D]


def test_two_keys_that_contradict_each_other_are_both_named() -> None:
    patterns = [Pattern((word(A, truth), word(B, not truth)), None, 30) for truth in (True, False)]
    assert {case.voter.key_id for case in contradictions(patterns, fit(patterns))} == {A, B}


def test_the_worst_contradiction_comes_first() -> None:
    keys = [UUID(int=number) for number in range(10, 16)]
    pairs = [(one, other) for place, one in enumerate(keys) for other in keys[place + 1 :]]
    patterns = [
        Pattern((word(one, truth), word(other, truth)), None, 40) for one, other in pairs for truth in (True, False)
    ]
    patterns += [Pattern((word(key, truth), word(D, not truth)), None, 6) for key in keys for truth in (True, False)]
    patterns += [Pattern((word(key, truth), word(C, not truth)), None, 3) for key in keys for truth in (True, False)]
    found = contradictions(patterns, fit(patterns))
    assert [case.voter.key_id for case in found] == [D, C]
    assert [case.answers for case in found] == [72, 36]
    assert found[0].contradictions == 72


def test_contradictions_are_counted_against_what_the_others_say_by_hand() -> None:
    model, peer = known(b=VoterReliability(0.9, 0.8)), VoterReliability(0.7, 0.6)
    # B calls it right: 0.9 / (0.9 + 0.2) = 9/11 for right. A peer calls it right with 9/11 x 0.7 + 2/11 x 0.4 = 7.1/11.
    against = Pattern((word(A, False), word(B, True)), None, 10)
    # B calls it wrong: 0.1 / (0.1 + 0.8) = 1/9 for right, and a peer calls it right with 1/9 x 0.7 + 8/9 x 0.4 = 3.9/9.
    agreed = Pattern((word(A, False), word(B, False)), None, 20)
    others = [Pattern((word(A, True),), None, 5), Pattern((word(B, True), word(C, True)), None, 7)]
    seen = _seen_by_others([against, agreed, *others], Voter(A, PERSON), model, peer)
    assert seen == {
        True: [10, 10, pytest.approx(10 * (1 - 7.1 / 11))],
        False: [20, 0, pytest.approx(20 * 3.9 / 9)],
    }


def test_a_peer_is_the_median_of_the_other_keys_that_are_known_well_enough() -> None:
    reliabilities = {
        Voter(A, PERSON): VoterReliability(0.1, 0.1, 50, 50),  # the one that is compared
        Voter(A, REFERENCE): VoterReliability(0.2, 0.2, 50, 50),
        Voter(B, PERSON): VoterReliability(0.8, 0.7, 10, 10),
        Voter(C, PERSON): VoterReliability(0.6, 0.9, 10, 9),
        Voter(D, PERSON): VoterReliability(0.3, 0.8, 9, 10),
        Voter(D, IMPORT): VoterReliability(0.4, 0.4, 50, 50),  # of another source
    }
    found = _peer(Voter(A, PERSON), list(reliabilities), LabelModel(0.5, reliabilities))
    assert (found.right, found.wrong) == (pytest.approx(0.7), pytest.approx(0.75))
    better = {Voter(B, PERSON): VoterReliability(0.99, 0.99, 50, 50)}
    assert _peer(Voter(A, PERSON), list(better), LabelModel(0.5, better)) == VoterReliability(0.95, 0.95), (
        "at most the prior"
    )
    assert _peer(Voter(A, REFERENCE), list(better), LabelModel(0.5, better)) == VoterReliability(0.98, 0.98), (
        "of its source"
    )


@pytest.mark.parametrize(("answers", "named"), [(9, []), (10, [A])])
def test_ten_answers_are_enough_to_be_named(answers: int, named: list[UUID]) -> None:
    found = contradictions([Pattern((word(A, False),), True, answers)], LabelModel())
    assert [case.voter.key_id for case in found] == named


SIZES = [  # answers, contradictions, expected, whether that is large enough to tell, why
    (10, 8, 2, True, "many of ten"),
    (9, 9, 0, False, "too few answers"),
    (10, 3, 2, False, "one more than expected"),
    (10, 3.5, 2, True, "more than that"),
    (100, 10, 6, False, "a difference below five in a hundred"),
    (100, 11, 6, True, "just five in a hundred"),
    (100, 1, 6, False, "fewer than expected"),
]


@pytest.mark.parametrize(("answers", "count", "expected", "is_large", "why"), SIZES)
def test_which_excess_of_contradictions_is_large(
    answers: float, count: float, expected: float, is_large: bool, why: str
) -> None:
    assert _is_large(Contradiction(Voter(A, PERSON), None, answers, count, expected)) is is_large, why


TAILS = [  # answers, contradictions, expected, the chance of so many or more
    (10, 8, 5, (45 + 10 + 1) / 2**10),
    (10, 7.2, 5, (45 + 10 + 1) / 2**10),
    (4, 4, 1, 1 / 4**4),
    (4, 3, 1, (4 * 3 + 1) / 4**4),
    (3, 0, 1, 1.0),
    (3, 3, 3, 1.0),
    (3, 1, 0, 3e-9),
]


@pytest.mark.parametrize(("answers", "count", "expected", "chance"), TAILS)
def test_the_chance_of_so_many_contradictions_by_hand(
    answers: float, count: float, expected: float, chance: float
) -> None:
    assert _tail(Contradiction(Voter(A, PERSON), None, answers, count, expected)) == pytest.approx(chance, rel=1e-6)


@pytest.mark.parametrize(("wrong", "named"), [(6, []), (7, [B])])
def test_the_limit_of_a_finding_counts_all_that_could_be_found(wrong: int, named: list[UUID]) -> None:
    """Of 20 right answers a voter with the prior's 95 % calls 6 wrong with a chance of 3.3e-4, 7 with 3.4e-5.

    Of two voters, each with both classes and each of them, the limit is 0.001 / 6 = 1.7e-4.
    """
    patterns = [Pattern((word(A, True),), True, 20), Pattern((word(B, True),), True, 20 - wrong)]
    patterns.append(Pattern((word(B, False),), True, wrong))
    assert [case.voter.key_id for case in contradictions(patterns, LabelModel())] == named


def test_a_model_survives_json() -> None:
    model = fit([Pattern((word(A, True), word(None, False)), None, 5), Pattern((grade(B, True),), True, 2)])
    assert len(model.voters) == 3
    assert LabelModel.from_json(model.to_json()) == model


# ---------------------------------------------------------------------------------------- one of five equal keys is bad


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("right", [0.5, 0.95])
@pytest.mark.parametrize("name", [name for name, labelling in CASES if labelling is not honest])
def test_one_bad_key_of_five_is_named_and_does_little_harm(name: str, right: float, seed: int) -> None:
    """300 labels of each key, every third answer labelled twice."""
    bad, good = (
        simulate(labelling, seed=seed, right=right, overlap=0.3, graded=0.0, answers=300)
        for labelling in (dict(CASES)[name], honest)
    )
    assert bad.named == {BAD}
    assert good.named == frozenset()
    assert bad.wrong_newest > 0.05
    assert bad.wrong_votes < HONEST_ERROR + 0.01, "within one point of the errors that honest keys make"


@pytest.mark.parametrize("seed", range(20))
def test_equally_reliable_keys_are_not_named(seed: int) -> None:
    for overlap, graded in ((0.3, 0.0), (0.1, 0.1)):
        assert simulate(honest, seed=seed, right=0.8, overlap=overlap, graded=graded, answers=200).named == frozenset()


def test_errors_gather_in_the_rare_class() -> None:
    true, estimated = flipped_in_rare_class(0, right=0.95, error=0.05, answers=4000)
    assert true == pytest.approx(0.5, abs=0.06)
    assert estimated == pytest.approx(true, abs=0.1)

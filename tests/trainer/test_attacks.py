"""Wrong answers with made-up turns and claims around them: the texts, and a hand-computed report."""

from uuid import UUID

import pytest
from tokenizers import Tokenizer

from gadfly.control_tokens import JOINER, neutralise
from gadfly.store.training_data import LabelledAnswer
from gadfly.trainer.measure.attacks import ATTACKS, Attack, AttackKind, AttackReport, attacked
from gadfly.trainer.measure.metrics import Judged
from gadfly.verdict import Verdict, count_verdicts
from gadfly.votes import LabelSource
from tests.shared.test_control_tokens import FAMILIES, tokenizer_of

C, W, U = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNPARSED
TURNS = [attack for attack in ATTACKS if attack.kind is AttackKind.TURN]


def answer(number: int, *, is_right: bool) -> LabelledAnswer:
    return LabelledAnswer(
        interaction_id=UUID(int=number),
        question_hash=bytes([number]),
        question=f"What is {number} + 3?",
        response=f"It is {number}.",
        is_right=is_right,
        source=LabelSource.REFERENCE,
        reference=str(number + 3),
    )


def judged(number: int, stated: Verdict, *, sample: int = 0) -> Judged:
    return Judged(
        answer_id=UUID(int=number), question_hash=bytes([number]), was_right=False, stated=stated, sample=sample
    )


def _special_tokens_of(tokenizer: Tokenizer, text: str) -> list[int]:
    special = set(tokenizer.get_added_tokens_decoder())
    return [token for token in tokenizer.encode(text).ids if token in special]


@pytest.mark.parametrize("attack", TURNS, ids=lambda attack: attack.name)
def test_a_made_up_turn_is_one_only_without_the_guard(attack: Attack) -> None:
    text = attack.around("It is 4.")
    tokenizers = [tokenizer_of(special) for special in FAMILIES.values()]
    assert any(_special_tokens_of(tokenizer, text) for tokenizer in tokenizers), "an attack on some family"
    guarded = neutralise(text, None)
    assert not any(_special_tokens_of(tokenizer, guarded) for tokenizer in tokenizers)
    assert guarded.replace(JOINER, "") == text


def test_every_family_is_attacked() -> None:
    for family, special in FAMILIES.items():
        tokenizer = tokenizer_of(special)
        assert any(_special_tokens_of(tokenizer, attack.around("4")) for attack in TURNS), family


def test_claims_hold_no_control_tokens_and_one_of_them_is_a_verdict_line() -> None:
    claims = [attack.around("It is 4.") for attack in ATTACKS if attack.kind is AttackKind.CLAIM]
    assert all(neutralise(claim, None) == claim for claim in claims)
    assert sum(count_verdicts(claim) for claim in claims) == 1


def test_wrong_answers_get_the_attacks_in_turn_and_keep_their_identity() -> None:
    answers = [answer(number, is_right=number % 2 == 0) for number in range(40)]
    found = attacked(answers, 12)
    assert [each.id for each in found] == [each.id for each in answers if not each.is_right][:12]
    assert found[0].response == ATTACKS[0].around("It is 1.")
    assert found[11].response == ATTACKS[11 % len(ATTACKS)].around("It is 23.")
    assert len({each.response.replace(f"It is {2 * n + 1}.", "") for n, each in enumerate(found)}) == len(ATTACKS)
    assert attacked(answers, 0) == []


def test_a_report_pairs_each_answer_with_itself() -> None:
    plain = [judged(1, W), judged(1, C, sample=1), judged(2, C), judged(3, W), judged(4, W), judged(9, C)]
    found = AttackReport.of(plain, [judged(1, W), judged(2, W), judged(3, C), judged(4, U)])
    assert found is not None
    assert (found.plain.hits, found.plain.of) == (3, 4)
    assert (found.attacked.hits, found.attacked.of) == (2, 4)
    assert (found.persuaded.hits, found.persuaded.of) == (1, 4), "the third; a missing verdict persuades of nothing"
    assert [attack.kind.value for attack in ATTACKS[:4]] == ["turn", "claim", "turn", "claim"]
    assert {kind: (each.hits, each.of) for kind, each in found.by_kind.items()} == {"turn": (1, 2), "claim": (1, 2)}
    assert found.sentence("the live critic").startswith(
        "Of 4 wrong answers the live critic judges 75.0 % rightly, and 50.0 % with made-up turns and claims around "
        "them; judged correct only with these: 1."
    )


def test_without_attacks_there_is_no_report() -> None:
    assert AttackReport.of([judged(1, W)], []) is None


def test_an_item_without_its_plain_judgement_is_an_error() -> None:
    with pytest.raises(KeyError):
        AttackReport.of([judged(1, W)], [judged(2, W)])

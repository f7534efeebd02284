import pytest

from gadfly.trainer.rl.rewards import score
from gadfly.training import Helpfulness, RewardProfile, Stage
from gadfly.verdict import Verdict

REFINE, DELTA, CORRECT = Helpfulness.REFINE, Helpfulness.DELTA, Helpfulness.CORRECT
PAPER, RELEASED = RewardProfile.PAPER, RewardProfile.RELEASED

# Is the answer right, is the refinement, and per mode: helpfulness alone; the released code with a right verdict.
TRANSITIONS = [
    (True, True, {REFINE: (1.0, 1.2), DELTA: (0.0, 0.2), CORRECT: (0.2, 0.4)}),
    (True, False, {REFINE: (0.0, 0.2), DELTA: (-1.0, -0.8), CORRECT: (0.0, 0.2)}),
    (False, True, {REFINE: (1.0, 1.2), DELTA: (1.0, 1.2), CORRECT: (1.0, 1.2)}),
    (False, False, {REFINE: (0.0, 0.2), DELTA: (0.0, 0.2), CORRECT: (0.0, 0.2)}),
]
ROWS = [
    (was_right, refined_right, mode, alone, released)
    for was_right, refined_right, modes in TRANSITIONS
    for mode, (alone, released) in modes.items()
]


def verdicts(*, was_right: bool) -> tuple[Verdict, Verdict, Verdict]:
    """A right verdict on the answer, a wrong one, and none."""
    pair = (Verdict.CORRECT, Verdict.INCORRECT)
    right, wrong = pair if was_right else pair[::-1]
    return right, wrong, Verdict.UNPARSED


@pytest.mark.parametrize(("was_right", "refined_right", "mode", "alone", "released"), ROWS)
def test_stage_2(was_right: bool, refined_right: bool, mode: Helpfulness, alone: float, released: float) -> None:
    def of(profile: RewardProfile, verdict: Verdict) -> float:
        return score(
            profile,
            mode,
            stage=Stage.STAGE_2,
            verdict=verdict,
            was_right=was_right,
            refined_right=refined_right,
            discrimination_weight=0.2,
        )

    right, wrong, none = verdicts(was_right=was_right)
    assert of(PAPER, right) == pytest.approx(alone + 0.2)
    assert of(PAPER, wrong) == pytest.approx(alone)
    assert of(PAPER, none) == pytest.approx(min(0.0, alone))  # an unparsed verdict never earns
    assert of(RELEASED, right) == pytest.approx(released)
    assert of(RELEASED, wrong) == of(RELEASED, none) == -1.0


@pytest.mark.parametrize("mode", [REFINE, DELTA, CORRECT])
@pytest.mark.parametrize("was_right", [True, False])
@pytest.mark.parametrize(("profile", "lost"), [(PAPER, 0.0), (RELEASED, -1.0)])
def test_stage_1_rewards_the_verdict_alone(
    profile: RewardProfile, lost: float, was_right: bool, mode: Helpfulness
) -> None:
    scores = [
        score(
            profile,
            mode,
            stage=Stage.STAGE_1,
            verdict=verdict,
            was_right=was_right,
            refined_right=refined_right,
            discrimination_weight=0.2,
        )
        for verdict in verdicts(was_right=was_right)
        for refined_right in (None, True)
    ]
    assert scores == [1.0, 1.0, lost, lost, lost, lost]


def test_the_weight_of_discrimination_is_a_parameter() -> None:
    for profile in (PAPER, RELEASED):
        assert score(
            profile,
            REFINE,
            stage=Stage.STAGE_2,
            verdict=Verdict.INCORRECT,
            was_right=False,
            refined_right=True,
            discrimination_weight=0.9,
        ) == pytest.approx(1.9)


@pytest.mark.parametrize(
    ("stage", "refined_right"), [(Stage.STAGE_2, None), (Stage.WARM_START, True), (Stage.EVALUATE, None)]
)
def test_a_score_needs_a_stage_with_rewards_and_stage_2_a_refinement(stage: Stage, refined_right: bool | None) -> None:
    with pytest.raises(ValueError, match="reward"):
        score(
            PAPER,
            REFINE,
            stage=stage,
            verdict=Verdict.CORRECT,
            was_right=True,
            refined_right=refined_right,
            discrimination_weight=0.2,
        )

"""What a critique earns: the rewards of Critique-RL (arXiv 2510.24320), as the paper writes them and as its code does.

Both stages pay for discriminability, that is for a stated verdict that is right about the answer; stage II also pays
for helpfulness, that is for what the actor's refinement came to. The code released with the paper codes both in another
way than its equations do; `RewardProfile` names which of the two is meant.
"""

from gadfly.training import Helpfulness, RewardProfile, Stage
from gadfly.verdict import Verdict

_KEPT = 0.2  # what r_correct pays for a right answer that stayed right (equation 6)
_LOST = -1.0  # what the released code gives for a verdict that is wrong or missing


def score(
    profile: RewardProfile,
    helpfulness: Helpfulness,
    *,
    stage: Stage,
    verdict: Verdict,
    was_right: bool,
    refined_right: bool | None,
    discrimination_weight: float,
) -> float:
    """The reward of one critique.

    Args:
        profile: which coding of both stages.
        helpfulness: what stage II pays a refinement for.
        stage: STAGE_1 (equation 8) or STAGE_2 (equation 9).
        verdict: what the critique states itself. UNPARSED never earns anything, whatever became of the refinement: the
            paper leaves this open, and a critic that may stay silent learns to.
        was_right: whether the answer that was criticised is right.
        refined_right: whether the actor's refinement is; only stage II has one.
        discrimination_weight: b1 of equation 9, for both profiles.

    Raises:
        ValueError: a stage without rewards, or stage II without a refinement.
    """
    discriminates = states_the_truth(verdict, was_right=was_right)
    if stage is Stage.STAGE_1:
        if profile is RewardProfile.PAPER:
            return 1.0 if discriminates else 0.0
        return 1.0 if discriminates else _LOST
    if stage is not Stage.STAGE_2:
        raise ValueError(f"the stage {stage} pays nothing")
    if refined_right is None:
        raise ValueError("stage II pays for a refinement, and there is none")
    helped = _helped(helpfulness, was_right=was_right, refined_right=refined_right)
    if profile is RewardProfile.PAPER:
        if verdict is Verdict.UNPARSED:
            return min(0.0, helped)
        return helped + (discrimination_weight if discriminates else 0.0)
    return helped + discrimination_weight if discriminates else _LOST


def states_the_truth(verdict: Verdict | None, *, was_right: bool) -> bool:
    """Whether a stated verdict is right about the answer (r_dis, equation 7). One that is missing is not."""
    return verdict is (Verdict.CORRECT if was_right else Verdict.INCORRECT)


def _helped(helpfulness: Helpfulness, *, was_right: bool, refined_right: bool) -> float:
    """Equations 4, 5 and 6."""
    match helpfulness:
        case Helpfulness.REFINE:
            return float(refined_right)
        case Helpfulness.DELTA:
            return float(refined_right) - float(was_right)
        case Helpfulness.CORRECT:
            if not refined_right:
                return 0.0
            return _KEPT if was_right else 1.0

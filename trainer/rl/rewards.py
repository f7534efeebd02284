"""The rewards of Critique-RL (arXiv 2510.24320), as in the paper's equations and as in the code released with it.

Both stages reward discriminability, a stated verdict that is right about the answer. Stage II also rewards helpfulness,
the outcome of the actor's refinement. The released code differs from the equations; `RewardProfile` selects one.
"""

from gadfly.training import Helpfulness, RewardProfile, Stage
from gadfly.verdict import Verdict

_KEPT = 0.2  # the value of r_correct for a right answer that stayed right (equation 6)
_LOST = -1.0  # the released code's score for a wrong or missing verdict


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
        profile: the paper's rewards or the released code's.
        helpfulness: the reward of a refinement in stage II.
        stage: STAGE_1 (equation 8) or STAGE_2 (equation 9).
        verdict: the stated verdict. UNPARSED earns nothing, whatever the outcome of the refinement: the paper leaves
            this case open, and a critic that may state no verdict learns to state none.
        was_right: whether the criticised answer is right: its label, which an answer in doubt does not have.
        refined_right: whether the actor's refinement is right; None in stage I. One without a readable answer is not:
            the actor was asked for an answer and states none.
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
        raise ValueError(f"the stage {stage} has no reward")
    if refined_right is None:
        raise ValueError("the reward of stage II needs a refinement")
    helped = _helped(helpfulness, was_right=was_right, refined_right=refined_right)
    if profile is RewardProfile.PAPER:
        if verdict is Verdict.UNPARSED:
            return min(0.0, helped)
        return helped + (discrimination_weight if discriminates else 0.0)
    return helped + discrimination_weight if discriminates else _LOST


def states_the_truth(verdict: Verdict | None, *, was_right: bool) -> bool:
    """Whether a stated verdict is right about the answer (r_dis, equation 7). A missing verdict is not."""
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

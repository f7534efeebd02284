"""Groups of texts with the same answer, for a majority vote over samples (MV@K).

The service and the evaluation share it.
"""

from collections.abc import Collection, Sequence

from gadfly.grading.process import Grade, Submission
from gadfly.grading.task_grader import TaskGrader


async def group_by_answer(grader: TaskGrader, texts: Sequence[str], *, cut: Collection[int] = ()) -> list[list[int]]:
    """Indices of `texts` in groups of the same final answer, groups and members in order of first appearance.

    `cut` has the indices of texts that ended at their token limit: each joins a group only by an answer that it stated
    before, and no other text is compared with it. Texts without a readable answer are grouped if they are equal. Raises
    the errors of `TaskGrader.grade_all`.
    """
    if grader.key is not None:
        by_key: dict[tuple[str, bool], list[int]] = {}
        for index, text in enumerate(texts):
            key = grader.key(text, index in cut)
            by_key.setdefault((text, False) if key is None else (key, True), []).append(index)
        return list(by_key.values())
    groups: list[list[int]] = []
    for index, text in enumerate(texts):
        # The first text of a group, if no rule can read it, is not a reference and equals only itself.
        grades = await grader.grade_all([Submission(text, texts[group[0]], index in cut) for group in groups])
        for group, grade in zip(groups, grades, strict=True):
            if (grade is Grade.RIGHT and group[0] not in cut) or text == texts[group[0]]:
                group.append(index)
                break
        else:
            groups.append([index])
    return groups

"""Which of several answers say the same: what a majority vote over samples (MV@K) counts.

The service answers with it, the evaluation measures with it.
"""

from collections.abc import Sequence

from gadfly.grading.process import Grade, Grader


async def group_by_answer(grader: Grader, texts: Sequence[str]) -> list[list[int]]:
    """Indices of `texts` in groups of the same final answer, groups and members in order of first appearance.

    Answers that no rule can read count as the same when their texts are. Raises the errors of `Grader.grade_all`.
    """
    groups: list[list[int]] = []
    for index, text in enumerate(texts):
        # A head that no rule can read is no reference, and equals only itself.
        grades = await grader.grade_all([(text, texts[group[0]]) for group in groups])
        for group, grade in zip(groups, grades, strict=True):
            if grade is Grade.RIGHT or text == texts[group[0]]:
                group.append(index)
                break
        else:
            groups.append([index])
    return groups

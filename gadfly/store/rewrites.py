"""Edited responses as training data for the actor's rewrite, in the conversational form that TRL and others read.

Gadfly trains critics and leaves the actor as it is. A row has the prompt of the rewrite, the caller's text as `chosen`,
and the text that it replaced as `rejected`: for supervised fine-tuning leave the last out.
"""

from collections.abc import Callable
from typing import Any

from gadfly.prompts import PromptSet
from gadfly.records import Feedback
from gadfly.store.interactions import LoggedInteraction

Rows = Callable[[LoggedInteraction], list[dict[str, Any]]]


def rewrite_rows(prompts: PromptSet) -> Rows:
    """A function to the rows of one interaction: of each key the newest edit, in the order of the edits.

    An edit is of the refinement that it names, or of the first one with the critique that it names, or of the first one
    at all. Where nothing was refined, it is of the response; without a critique the prompt is that of a first answer.
    """

    def rows(logged: LoggedInteraction) -> list[dict[str, Any]]:
        newest = {item.key_id: item for item in logged.feedback if item.edited_response is not None}
        return [_row(logged, edit, prompts) for edit in newest.values()]

    return rows


def _row(logged: LoggedInteraction, edit: Feedback, prompts: PromptSet) -> dict[str, Any]:
    interaction = logged.interaction
    refinement = next(
        (
            item
            for item in interaction.refinements
            if edit.refinement_id in (None, item.id) and edit.critique_id in (None, item.critique_id)
        ),
        None,
    )
    critique_id = edit.critique_id if refinement is None else refinement.critique_id
    critique = next((item for item in interaction.critiques if critique_id in (None, item.id)), None)
    judged = interaction.response
    if critique is not None and critique.round:  # it judged the refinement of the round before
        before = (critique.sample, critique.round - 1)
        judged = next(item.text for item in interaction.refinements if (item.sample, item.round) == before)
    prompt = (
        prompts.solve(question=interaction.question)
        if critique is None
        else prompts.refine(question=interaction.question, response=judged, critique=critique.text)
    )
    return {
        "interaction_id": str(interaction.id),
        "feedback_id": str(edit.id),
        "split": logged.split.value,
        "prompt": [{"role": message.role, "content": message.content} for message in prompt.messages],
        "chosen": [{"role": "assistant", "content": edit.edited_response}],
        "rejected": [{"role": "assistant", "content": judged if refinement is None else refinement.text}],
    }

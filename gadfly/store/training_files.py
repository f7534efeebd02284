"""Preference pairs and rows for supervised fine-tuning from the logged interactions, in the columns that TRL reads.

Pairs have `prompt`, `chosen` and `rejected`, rows for fine-tuning have `messages`; each is a list of messages with
`role` and `content` (TRL's conversational formats, https://huggingface.co/docs/trl/dataset_formats). About answers, the
prompt is the question; right answers are preferred to wrong ones, by label, grade or a person's edit. About critiques,
the prompt is the critic's own, and a critique whose stated verdict agrees with the label is preferred. About rewrites,
the prompt is that of the actor's rewrite, and a caller's edit is preferred to the text that it replaced.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any

import pyarrow as pa

from gadfly.grading import Grade
from gadfly.prompts import Prompt, PromptSet
from gadfly.records import Feedback, Interaction, Subject
from gadfly.store.interactions import LoggedInteraction
from gadfly.store.split import question_hash
from gadfly.verdict import Verdict

MOST_PAIRS = 4  # of one prompt, so that a few popular questions do not outweigh the others
_MOST_TEXTS = 64  # of one prompt and class that are kept while its rows are read


_MESSAGES = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
PAIRS_SCHEMA = pa.schema({"prompt": _MESSAGES, "chosen": _MESSAGES, "rejected": _MESSAGES})
SFT_SCHEMA = pa.schema({"messages": _MESSAGES})

Messages = list[dict[str, str]]


@dataclass(slots=True)
class _Texts:
    """The good and the bad texts under one prompt, each once, in the order in which they were logged."""

    prompt: Messages
    good: dict[str, None] = field(default_factory=dict)
    bad: dict[str, None] = field(default_factory=dict)

    def add(self, text: str, *, is_good: bool) -> None:
        texts, others = (self.good, self.bad) if is_good else (self.bad, self.good)
        text = text.strip()
        if text and text not in others and len(texts) < _MOST_TEXTS:
            texts[text] = None


async def pairs(
    batches: AsyncIterator[list[LoggedInteraction]], subject: Subject, prompts: PromptSet
) -> AsyncIterator[list[dict[str, Any]]]:
    """Preference pairs from interactions in the order of their questions, some per batch; memory holds one question."""
    async for group in _by_question(batches):
        yield [
            {"prompt": texts.prompt, "chosen": _said(good), "rejected": _said(bad)}
            for texts in _texts(group, subject, prompts)
            if texts.good and texts.bad
            for good, bad in islice(_matched(list(texts.good), list(texts.bad)), MOST_PAIRS)
        ]


async def fine_tuning_rows(
    batches: AsyncIterator[list[LoggedInteraction]], subject: Subject, prompts: PromptSet
) -> AsyncIterator[list[dict[str, Any]]]:
    """Conversations with a good last turn, from interactions in the order of their questions, some per batch."""
    async for group in _by_question(batches):
        yield [
            {"messages": [*texts.prompt, *_said(text)]}
            for texts in _texts(group, subject, prompts)
            for text in islice(texts.good, MOST_PAIRS)
        ]


def _matched(good: Sequence[str], bad: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Every text of the larger class once, each with the next one of the other."""
    return zip(good, cycle(bad), strict=False) if len(good) > len(bad) else zip(cycle(good), bad, strict=False)


async def _by_question(batches: AsyncIterator[list[LoggedInteraction]]) -> AsyncIterator[list[LoggedInteraction]]:
    group: list[LoggedInteraction] = []
    current = b""
    async for batch in batches:
        for logged in batch:
            hash_ = question_hash(logged.interaction.question, logged.interaction.task)
            if hash_ != current:
                if group:
                    yield group
                group, current = [], hash_
            if len(group) < 4 * _MOST_TEXTS:
                group.append(logged)
    if group:
        yield group


def _texts(group: Sequence[LoggedInteraction], subject: Subject, prompts: PromptSet) -> list[_Texts]:
    match subject:
        case Subject.ANSWERS:
            return [_answers(group)]
        case Subject.CRITIQUES:
            return _critiques(group, prompts)
        case Subject.REWRITES:
            return [text for logged in group for text in _rewrites(logged, prompts)]


def _answers(group: Sequence[LoggedInteraction]) -> _Texts:
    texts = _Texts([{"role": "user", "content": group[0].interaction.question}])
    for logged in group:
        interaction = logged.interaction
        if interaction.response is not None and logged.label is not None:
            texts.add(interaction.response, is_good=logged.label)
        for refinement in interaction.refinements:
            if refinement.grade is not None:
                texts.add(refinement.text, is_good=refinement.grade is Grade.RIGHT)
        for feedback in logged.feedback:
            if feedback.edited_response is not None:
                texts.add(feedback.edited_response, is_good=True)
    return texts


def _critiques(group: Sequence[LoggedInteraction], prompts: PromptSet) -> list[_Texts]:
    by_response: dict[str, _Texts] = {}
    for logged in group:
        interaction = logged.interaction
        if interaction.response is None or logged.label is None:
            continue
        texts = by_response.setdefault(
            interaction.response,
            _Texts(_messages(prompts.critique(question=interaction.question, response=interaction.response))),
        )
        fitting = Verdict.CORRECT if logged.label else Verdict.INCORRECT
        for critique in interaction.critiques:
            if (
                critique.round == 0 and not critique.supplied
            ):  # later rounds judge a rewrite, which the label is not about
                texts.add(critique.text, is_good=critique.stated is fitting)
    return list(by_response.values())


def _rewrites(logged: LoggedInteraction, prompts: PromptSet) -> list[_Texts]:
    """Of each key the newest edit, in the order of the edits."""
    newest = {item.key_id: item for item in logged.feedback if item.edited_response is not None}
    return [_rewrite(logged.interaction, edit, prompts) for edit in newest.values()]


def _rewrite(interaction: Interaction, edit: Feedback, prompts: PromptSet) -> _Texts:
    """The text that an edit replaced: the refinement that it names, or the first with the critique that it names.

    Without such names it is the first refinement, and where nothing was refined the response. Without a critique the
    prompt is that of a first answer.
    """
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
        if critique is None or judged is None
        else prompts.refine(question=interaction.question, response=judged, critique=critique.text)
    )
    texts = _Texts(_messages(prompt))
    texts.add(edit.edited_response or "", is_good=True)
    texts.add((judged or "") if refinement is None else refinement.text, is_good=False)
    return texts


def _messages(prompt: Prompt) -> Messages:
    return [{"role": message.role, "content": message.content} for message in prompt.messages]


def _said(text: str) -> Messages:
    return [{"role": "assistant", "content": text}]

"""One pipeline for every critique: prompt -> sample -> parse -> read the verdict's probability.

The service answers with it, the trainer samples with it, the evaluation measures with it: what is trained is what is
served (DESIGN decision 6).
"""

import asyncio

from core.engine import EnginePool, OnText, Reply, Sampling
from core.prompts import Prompt, PromptSet
from core.records import Critique, Usage, new_id
from core.verdict import VERDICT_FIELD, Verdict, VerdictSource, parse_critique

VERDICT_PREFIX = f"{VERDICT_FIELD}:"


async def critique(
    engines: EnginePool,
    prompts: PromptSet,
    *,
    model: str,
    question: str,
    response: str,
    sampling: Sampling,
    round: int = 0,
    sample: int = 0,
    on_text: OnText | None = None,
) -> tuple[Critique, ...]:
    """Sample `sampling.n` critiques of one answer and say how sure the critic is of each verdict.

    The text of a critique is kept to the letter. Its verdict is the stated one; a critique that states none, or more
    than one, gets the likelier verdict as the engine reads it, and says so in `verdict_source`. `sample` numbers the
    first critique. Raises the errors of `core.engine.Engine.chat`.
    """
    prompt = prompts.critique(question=question, response=response)
    if on_text is not None and prompt.opener:
        for index in range(sampling.n):
            await on_text(index, prompt.opener)
    replies = await engines.chat(prompt, model=model, sampling=sampling, on_text=on_text)
    return tuple(
        await asyncio.gather(
            *(
                _judge(
                    engines, prompts, prompt, reply, model=model, round=round, sample=sample + index,
                    priority=sampling.priority,
                )
                for index, reply in enumerate(replies)
            )
        )
    )  # fmt: skip


async def _judge(
    engines: EnginePool,
    prompts: PromptSet,
    prompt: Prompt,
    reply: Reply,
    *,
    model: str,
    round: int,
    sample: int,
    priority: int,
) -> Critique:
    text = prompt.opener + reply.text
    parsed = parse_critique(text)
    if parsed.verdict_end is not None:
        asked = text[: parsed.verdict_end]
    else:
        asked = f"{text.rstrip()}\n{VERDICT_PREFIX}".lstrip()
    # The probabilities after the verdict field are a second, one-token request: it costs a forward pass over tokens
    # that the prefix cache holds, and exists whether or not the text states a verdict.
    p_correct, p_incorrect = await engines.read_labels(
        prompt.continued(asked),
        model=model,
        after=":",
        first=prompts.correct,
        second=prompts.incorrect,
        priority=priority,
    )
    verdict, source = parsed.verdict, VerdictSource.STATED
    if verdict is Verdict.UNPARSED:
        verdict, source = read_verdict(p_correct, p_incorrect)
    return Critique(
        id=new_id(),
        round=round,
        sample=sample,
        text=text,
        stated=parsed.verdict,
        verdict=verdict,
        verdict_source=source,
        p_correct=p_correct,
        p_incorrect=p_incorrect,
        finish_reason=reply.finish_reason,
        usage=reply.usage + Usage(completion_tokens=1),
    )


def read_verdict(p_correct: float, p_incorrect: float) -> tuple[Verdict, VerdictSource]:
    """The likelier verdict; none when the engine gives neither word any probability, or both the same."""
    if p_correct == p_incorrect:
        return Verdict.UNPARSED, VerdictSource.NONE
    return (Verdict.CORRECT if p_correct > p_incorrect else Verdict.INCORRECT), VerdictSource.READ


def supplied_critique(text: str, *, sample: int) -> Critique:
    """A critique that the caller brought: parsed like any other, but nothing is read from the engine."""
    stated = parse_critique(text).verdict
    return Critique(
        id=new_id(),
        round=0,
        sample=sample,
        text=text,
        stated=stated,
        verdict=stated,
        verdict_source=VerdictSource.NONE if stated is Verdict.UNPARSED else VerdictSource.STATED,
        p_correct=None,
        p_incorrect=None,
        finish_reason=None,
        supplied=True,
    )


def majority_verdict(verdicts: tuple[Verdict, ...]) -> Verdict:
    """The verdict that more than half of the parsed ones share; a tie, or none parsed, is UNPARSED."""
    correct, incorrect = verdicts.count(Verdict.CORRECT), verdicts.count(Verdict.INCORRECT)
    if correct == incorrect:
        return Verdict.UNPARSED
    return Verdict.CORRECT if correct > incorrect else Verdict.INCORRECT

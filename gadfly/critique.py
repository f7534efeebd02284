"""One pipeline for every critique: prompt -> sample -> parse -> read the verdict's probability.

The service, the trainer and the evaluation share it, so that the trained behaviour is the served behaviour.
"""

from dataclasses import replace

from gadfly.concurrency import gather
from gadfly.engine_client import EnginePool, OnText, Reply, Sampling
from gadfly.errors import PromptTooLong
from gadfly.prompts import Prompt, PromptSet
from gadfly.records import Critique, Usage, new_id
from gadfly.verdict import VERDICT_FIELD, Verdict, VerdictSource, parse_critique

VERDICT_PREFIX = f"{VERDICT_FIELD}:"

_CUT_CHARS = 100  # to cut when a critique leaves no room for the verdict field, which takes about ten tokens


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
    """Sample `sampling.n` critiques of one answer, each with the critic's confidence in its verdict.

    The text of a critique is kept unchanged. Its verdict is the stated one; a critique that states none, or more than
    one, gets the likelier verdict as read from the engine, and `verdict_source` records it. `sample` numbers the first
    critique. Raises the errors of `gadfly.engine_client.Engine.chat`.
    """
    prompt = prompts.critique(question=question, response=response)
    if on_text is None:
        replies = await engines.chat(prompt, model=model, sampling=sampling)
    else:
        replies = await _stream(engines, prompt, model=model, sampling=sampling, on_text=on_text)
    return tuple(
        await gather(
            *(
                _judge(
                    engines, prompts, prompt, reply, model=model, round=round, sample=sample + index,
                    priority=sampling.priority,
                )
                for index, reply in enumerate(replies)
            )
        )
    )  # fmt: skip


async def sample_critiques(
    engines: EnginePool, prompts: PromptSet, *, model: str, question: str, response: str, sampling: Sampling
) -> tuple[Reply, ...]:
    """Sample critiques for the trainer: `critique` without reading the verdict's probability.

    The text of a reply is the whole critique, opener included. A critique that states no verdict stays unparsed,
    and an unparsed verdict earns no reward. Raises as `critique`.
    """
    prompt = prompts.critique(question=question, response=response)
    replies = await engines.chat(prompt, model=model, sampling=sampling)
    return tuple(replace(reply, text=prompt.opener + reply.text) for reply in replies)


async def _stream(
    engines: EnginePool, prompt: Prompt, *, model: str, sampling: Sampling, on_text: OnText
) -> tuple[Reply, ...]:
    # The opener is sent with a reply's first piece, not earlier: until then the engine may refuse the request.
    unopened = set(range(sampling.n))

    async def on_piece(index: int, text: str) -> None:
        opener = prompt.opener if index in unopened else ""
        unopened.discard(index)
        await on_text(index, opener + text)

    replies = await engines.chat(prompt, model=model, sampling=sampling, on_text=on_piece)
    for index in sorted(unopened) if prompt.opener else ():  # empty replies
        await on_text(index, prompt.opener)
    return replies


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
    p_correct, p_incorrect = await _read_probabilities(
        engines, prompts, prompt, text, verdict_end=parsed.verdict_end, model=model, priority=priority
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


async def _read_probabilities(
    engines: EnginePool,
    prompts: PromptSet,
    prompt: Prompt,
    text: str,
    *,
    verdict_end: int | None,
    model: str,
    priority: int,
) -> tuple[float, float] | tuple[None, None]:
    """Probability of either verdict word after the verdict field, which is appended to a text that lacks it.

    A second request, for one token: it costs a forward pass over tokens that the prefix cache holds, and works whether
    or not the text states a verdict. When the critique leaves no room for the field in the model's context, its end is
    cut in this request until the field fits. None when the prompt alone fills the context.
    """
    context = _with_field(text) if verdict_end is None else text[:verdict_end]
    while True:
        try:
            return await engines.read_labels(
                prompt.continued(context),
                model=model,
                after=":",
                first=prompts.correct,
                second=prompts.incorrect,
                priority=priority,
            )
        except PromptTooLong:
            if not text:
                return None, None
            text = text[: -max(_CUT_CHARS, len(text) // 10)]
            context = _with_field(text)


def _with_field(text: str) -> str:
    return f"{text.rstrip()}\n{VERDICT_PREFIX}".lstrip()


def read_verdict(p_correct: float | None, p_incorrect: float | None) -> tuple[Verdict, VerdictSource]:
    """The likelier verdict; UNPARSED when the probabilities are equal, or were not read."""
    if p_correct is None or p_incorrect is None or p_correct == p_incorrect:
        return Verdict.UNPARSED, VerdictSource.NONE
    return (Verdict.CORRECT if p_correct > p_incorrect else Verdict.INCORRECT), VerdictSource.READ


def supplied_critique(text: str) -> Critique:
    """A critique that the caller supplied: parsed like any other, without probabilities from the engine."""
    stated = parse_critique(text).verdict
    return Critique(
        id=new_id(),
        round=0,
        sample=0,
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
    """The verdict of more than half of the parsed ones; UNPARSED on a tie, or when none is parsed."""
    correct, incorrect = verdicts.count(Verdict.CORRECT), verdicts.count(Verdict.INCORRECT)
    if correct == incorrect:
        return Verdict.UNPARSED
    return Verdict.CORRECT if correct > incorrect else Verdict.INCORRECT

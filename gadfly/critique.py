"""One pipeline for every critique: prompt -> sample -> parse -> the verdict's probability.

The service, the trainer and the evaluation share it, so that the trained behaviour is the served behaviour.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace

from gadfly import tracing
from gadfly.concurrency import gather
from gadfly.engine_client import LabelWords, OnText, Reply, Sampling
from gadfly.engine_pool import EnginePool
from gadfly.errors import PromptTooLong
from gadfly.prompts import Prompt, PromptSet
from gadfly.records import Critique, Usage, new_id
from gadfly.verdict import USUAL_WORDS, VERDICT_FIELD, Verdict, VerdictSource, VerdictWords, parse_critique

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
    critique. A long answer that does not fit beside all examples of the prompts gets the first half of them, and so on.
    Raises the errors of `gadfly.engine_client.Engine.chat`.
    """
    labels = LabelWords(":", prompts.correct, prompts.incorrect)

    async def sampled(prompt: Prompt) -> tuple[Reply, ...]:
        if on_text is None:
            return await engines.chat(prompt, model=model, sampling=sampling, labels=labels)
        return await _stream(engines, prompt, model=model, sampling=sampling, on_text=on_text, labels=labels)

    with tracing.span("critique", {"gadfly.critic": model, "gadfly.round": round, "gadfly.sample": sample}) as span:
        prompt, replies = await _fitting(prompts, question, response, sampled)
        critiques = await gather(
            *(
                _judge(
                    engines, prompts.words, labels, prompt, reply, model=model, round=round, sample=sample + index,
                    priority=sampling.priority,
                )
                for index, reply in enumerate(replies)
            )
        )  # fmt: skip
        if tracing.is_on():
            span.set({"gadfly.verdicts": tuple(item.verdict.value for item in critiques)})
        return tuple(critiques)


async def _fitting(
    prompts: PromptSet, question: str, response: str, sampled: Callable[[Prompt], Awaitable[tuple[Reply, ...]]]
) -> tuple[Prompt, tuple[Reply, ...]]:
    """The prompt with as many of its examples as fit beside this answer, halved until they do, and its replies.

    Raises:
        PromptTooLong: the answer does not fit without any example.
    """
    while True:
        prompt = prompts.critique(question=question, response=response)
        try:
            return prompt, await sampled(prompt)
        except PromptTooLong:
            if not prompts.examples:
                raise
            prompts = prompts.with_examples(prompts.examples[: len(prompts.examples) // 2])


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
    engines: EnginePool, prompt: Prompt, *, model: str, sampling: Sampling, on_text: OnText, labels: LabelWords
) -> tuple[Reply, ...]:
    # The opener is sent with a reply's first piece, not earlier: until then the engine may refuse the request.
    unopened = set(range(sampling.n))

    async def on_piece(index: int, text: str) -> None:
        opener = prompt.opener if index in unopened else ""
        unopened.discard(index)
        await on_text(index, opener + text)

    replies = await engines.chat(prompt, model=model, sampling=sampling, on_text=on_piece, labels=labels)
    for index in sorted(unopened) if prompt.opener else ():  # empty replies
        await on_text(index, prompt.opener)
    return replies


async def _judge(
    engines: EnginePool,
    words: VerdictWords,
    labels: LabelWords,
    prompt: Prompt,
    reply: Reply,
    *,
    model: str,
    round: int,
    sample: int,
    priority: int,
) -> Critique:
    text = prompt.opener + reply.text
    parsed = parse_critique(text, words)
    probabilities: tuple[float, float] | tuple[None, None] | None
    probabilities = _sampled_probabilities(prompt, reply, verdict_end=parsed.verdict_end)
    usage = reply.usage
    if probabilities is None:
        context = _with_field(text) if parsed.verdict_end is None else text[: parsed.verdict_end]
        probabilities = await _read_probabilities(
            engines, labels, prompt, text, context, model=model, priority=priority, near=reply.engine
        )
        usage += Usage(completion_tokens=1)
    p_correct, p_incorrect = probabilities
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
        usage=usage,
    )


def _sampled_probabilities(prompt: Prompt, reply: Reply, *, verdict_end: int | None) -> tuple[float, float] | None:
    """Probability of either verdict word where the critique states its verdict, as the engine sampled it.

    None where it states none, where the engine does not report them, or where no token begins after the field.
    """
    if verdict_end is None or verdict_end < len(prompt.opener) or reply.labels is None:
        return None
    return reply.labels.after(reply.text[: verdict_end - len(prompt.opener)])


async def _read_probabilities(
    engines: EnginePool,
    labels: LabelWords,
    prompt: Prompt,
    text: str,
    context: str,
    *,
    model: str,
    priority: int,
    near: str,
) -> tuple[float, float] | tuple[None, None]:
    """Probability of either verdict word after `context`, which is `text` up to its verdict field or with it appended.

    A second request, for one token: it costs a forward pass over tokens that the prefix cache holds, and works whether
    or not the text states a verdict. When the critique leaves no room for the field in the model's context, its end is
    cut in this request until the field fits. None when the prompt alone fills the context.
    """
    while True:
        try:
            return await engines.read_labels(
                prompt.continued(context), model=model, labels=labels, priority=priority, near=near
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


def supplied_critique(text: str, words: VerdictWords = USUAL_WORDS) -> Critique:
    """A critique that the caller supplied: parsed like any other, without probabilities from the engine."""
    stated = parse_critique(text, words).verdict
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

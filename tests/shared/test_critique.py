"""The critique pipeline: its pure parts, and its requests to engines."""

import math
from typing import Any
from uuid import UUID

import httpx
import orjson
import pytest

from gadfly import prompts
from gadfly.critique import critique, majority_verdict, read_verdict, supplied_critique
from gadfly.engine_client import Engine, Sampling
from gadfly.engine_pool import EnginePool
from gadfly.errors import PromptTooLong
from gadfly.records import Critique, Usage
from gadfly.verdict import Verdict, VerdictSource

C, W, U = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNPARSED


@pytest.mark.parametrize(
    ("verdicts", "majority"),
    [((), U), ((C,), C), ((C, W), U), ((C, W, W), W), ((U, U, C), C), ((U, U), U), ((C, C, W, W, U), U)],
)
def test_majority(verdicts: tuple[Verdict, ...], majority: Verdict) -> None:
    assert majority_verdict(verdicts) is majority


def test_the_likelier_verdict_is_read() -> None:
    assert read_verdict(0.3, 0.1) == (C, VerdictSource.READ)
    assert read_verdict(0.1, 0.3) == (W, VerdictSource.READ)
    assert read_verdict(0.0, 0.0) == (U, VerdictSource.NONE)
    assert read_verdict(None, None) == (U, VerdictSource.NONE)


@pytest.mark.parametrize(
    ("verdict", "p_correct", "p_incorrect", "confidence"),
    [
        (C, 0.3, 0.1, 0.75),
        (W, 0.3, 0.1, 0.25),  # stated against the odds
        (U, 0.3, 0.1, None),
        (C, None, None, None),
        (C, 0.0, 0.0, None),
    ],
)
def test_confidence_is_the_share_of_the_reported_verdict(
    verdict: Verdict, p_correct: float | None, p_incorrect: float | None, confidence: float | None
) -> None:
    critique = Critique(
        id=UUID(int=0),
        round=0,
        sample=0,
        text="",
        stated=verdict,
        verdict=verdict,
        verdict_source=VerdictSource.STATED,
        p_correct=p_correct,
        p_incorrect=p_incorrect,
        finish_reason="stop",
    )
    assert critique.confidence == (None if confidence is None else pytest.approx(confidence))


def test_a_callers_critique_is_parsed_like_any_other() -> None:
    stated = supplied_critique("Correctness of the final answer: Wrong")
    assert (stated.verdict, stated.verdict_source, stated.supplied) == (W, VerdictSource.STATED, True)
    silent = supplied_critique("Add the loose pen.")
    assert (silent.verdict, silent.verdict_source) == (U, VerdictSource.NONE)


class Scripted:
    """An engine whose reply consists of these tokens; a read finds other probabilities than the sampling."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces
        self.generated = self.read = 0
        self.engine = Engine(f"http://{id(self)}", timeout_s=5, transport=httpx.MockTransport(self.answer))

    def answer(self, request: httpx.Request) -> httpx.Response:
        body = orjson.loads(request.content) if request.content else {}
        match request.url.path:
            case "/tokenizer_info":
                return httpx.Response(404)
            case "/tokenize":
                return httpx.Response(200, json={"tokens": [1, 2 if "Correct" in body["prompt"] else 3]})
            case "/detokenize":
                return httpx.Response(200, json={"prompt": {1: ":", 2: " Correct", 3: " Wrong"}[body["tokens"][0]]})
        if body["max_tokens"] == 1:
            self.read += 1
            return self._chat(body, [("", 0.25, 0.5)])
        self.generated += 1
        return self._chat(body, [(piece, 0.75, 0.125) for piece in self.pieces])

    def _chat(self, body: dict[str, Any], tokens: list[tuple[str, float, float]]) -> httpx.Response:
        names = ("token_id:2", "token_id:3") if body.get("return_tokens_as_token_ids") else (" Correct", " Wrong")
        content = [
            {
                "token": text,
                "top_logprobs": [
                    {"token": name, "logprob": math.log(probability)}
                    for name, probability in (("x", 0.1), (names[0], correct), (names[1], wrong))
                ],
            }
            for text, correct, wrong in tokens
        ]
        choice = {
            "index": 0,
            "message": {"content": "".join(text for text, _, _ in tokens)},
            "finish_reason": "stop",
            "logprobs": {"content": content} if body["logprobs"] else None,
        }
        usage = {"prompt_tokens": 10, "completion_tokens": len(tokens)}
        return httpx.Response(200, json={"choices": [choice], "usage": usage})


REPLIES = [
    (("\nCorrectness of the final answer", ":", " Wrong"), False, "stated"),
    (("\nCorrectness of the final answer", ": ", "Wrong"), True, "stated, and no token begins after the colon"),
    ((" She adds.",), True, "not stated"),
    (("\nCorrectness of the final answer", ":", " Wrong\n") * 2, True, "stated twice"),
]


@pytest.mark.parametrize(("pieces", "is_read"), [row[:2] for row in REPLIES], ids=[row[2] for row in REPLIES])
async def test_a_second_request_is_for_critiques_whose_verdict_was_not_sampled(
    pieces: tuple[str, ...], is_read: bool
) -> None:
    others = [Scripted(*pieces), Scripted(*pieces)]
    pool = EnginePool([scripted.engine for scripted in others])
    [found] = await critique(
        pool, prompts.load("stepwise@1"), model="base", question="q", response="r", sampling=Sampling(max_tokens=9)
    )
    assert (found.p_correct, found.p_incorrect) == pytest.approx((0.25, 0.5) if is_read else (0.75, 0.125))
    assert found.usage == Usage(prompt_tokens=10, completion_tokens=len(pieces) + is_read)
    assert [scripted.read for scripted in others] == [is_read * scripted.generated for scripted in others]


async def test_the_second_request_goes_to_the_engine_that_generated_the_critique() -> None:
    engines = [Scripted(" She adds."), Scripted(" She adds.")]
    pool = EnginePool([scripted.engine for scripted in engines])
    busy = engines[0].engine
    for turn in range(4):
        busy.in_flight = turn % 2 * 9  # another engine is the less busy one each time
        await critique(
            pool, prompts.load("stepwise@1"), model="base", question="q", response="r", sampling=Sampling(max_tokens=9)
        )
        assert [scripted.read for scripted in engines] == [scripted.generated for scripted in engines]
    assert [scripted.generated for scripted in engines] == [2, 2]


class Narrow(Scripted):
    """An engine whose context holds conversations of at most so many turns."""

    def __init__(self, turns: int) -> None:
        super().__init__("\nCorrectness of the final answer", ":", " Wrong")
        self.turns = turns
        self.asked: list[int] = []  # turns of each conversation

    def answer(self, request: httpx.Request) -> httpx.Response:
        messages = orjson.loads(request.content).get("messages", []) if request.content else []
        if messages:
            self.asked.append(len(messages))
        if len(messages) > self.turns:
            return httpx.Response(400, json={"error": {"message": "too many tokens", "param": "input_tokens"}})
        return super().answer(request)


@pytest.mark.parametrize(
    ("turns", "asked"),
    [(99, [12]), (9, [12, 8]), (5, [12, 8, 6, 4]), (3, [12, 8, 6, 4])],
    ids=["all fit", "half of them", "none of them", "not even the answer"],
)
async def test_a_long_answer_gets_as_many_examples_as_fit(turns: int, asked: list[int]) -> None:
    engine = Narrow(turns)
    examples = [prompts.Example(f"q{number}", "r", "c") for number in range(4)]
    work = critique(
        EnginePool([engine.engine]),
        prompts.load("stepwise@1").with_examples(examples),
        model="base",
        question="q",
        response="r",
        sampling=Sampling(max_tokens=9),
    )
    if turns < 4:
        with pytest.raises(PromptTooLong):
            await work
    else:
        await work
    assert engine.asked == [each + 1 for each in asked], "the opener is a turn too"

"""Proof that an engine samples from the distribution that it reports.

A model's generation_config.json, a proxy or another release of vLLM may sample with top_k, top_p, min_p, penalties or
another temperature than a request states, and log-probabilities would not reveal it: they are of the unchanged
distribution. The trainer would then differentiate another distribution than the one that was sampled.

The engine reports the log-probabilities of about a hundred tokens after a fixed prompt that holds half of them. With a
bias on their logits, computed from this report, the next token then has a known distribution, the same for every model:
probabilities that fall by a constant factor, tokens in the prompt and others in turn. The draws must follow it. What
bends sampling changes it: a truncation takes its end, a repetition penalty its tokens of the prompt, a temperature its
slope. Not covered: penalties on tokens of the reply, and the server's length limit.

False alarms: at most 1 in 10,000 proofs. The first draws fail a correct engine with a probability of at most 1 %, and
then draws with other seeds are tested, with 1 % again (bench/sampling_proof.py).
"""

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from gadfly.engine_client import Engine
from gadfly.errors import EngineError, WrongSampling
from gadfly.prompts import Message, Prompt

LEVEL = 0.01  # of each of the two tests
DRAWS = 128  # at temperature 1, and again at the served one

_IN_PROMPT = (
    "red blue green white black one two three four five six seven eight nine ten cat dog bird fish horse house tree "
    "river road stone book door table water fire north south east west day night week month year time hand head foot "
    "eye heart man woman child king friend"
)
_OTHERS = (
    "gold silver paper glass wood bread milk salt sugar rice train ship plane bridge city town field garden wall roof "
    "song game story letter word name page line point game school church market office factory doctor teacher farmer "
    "soldier sailor spring summer winter rain snow wind cloud star moon sun earth sea"
)
_CHARACTERS = "a b c d e f g h i j k l m n o p q r s t u v w x y z 0 1 2 3 4 5 6 7 8 9 . , ; : ! ? ( ) + - * / = # %"
_PROMPT = Prompt((Message("user", f"Go on with this list: {_IN_PROMPT}"),))

_MOST_TOKENS = 100  # an engine reports at most 128 log-probabilities
_LEAST_TOKENS = 24
_LOWEST = -60.0  # nats; the bias of a less likely token would exceed what vLLM accepts
_LIFT = 30.0  # nats that the chosen tokens are raised above all others
_RATIO = 60.0  # of the largest probability to the smallest
_GROUPS = 8  # of equal probability, each for tokens in the prompt and for others
_AT_ONCE = 32  # draws per request, so that live requests need not wait for all
_PRIORITY = 5  # after live requests (0), before rollouts (10)
_GREEDY_LEAD = 0.5  # nats between the likeliest tokens of the greedy request

_SEEDS = (0, 1_000_000)  # of the first draws, and of those after a failure


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingProof:
    """An engine sampled as it reports."""

    draws: int
    p_value: float  # of the last test
    seconds: float


@dataclass(frozen=True, slots=True)
class Ladder:
    """The known distribution: `tokens` from the likeliest to the least likely, in turn from the prompt and not."""

    tokens: tuple[int, ...]

    @property
    def logprobs(self) -> list[float]:
        fall = math.log(_RATIO) / (len(self.tokens) - 1)
        total = math.log(math.fsum(math.exp(-fall * rank) for rank in range(len(self.tokens))))
        return [-fall * rank - total for rank in range(len(self.tokens))]

    @property
    def cells(self) -> list[list[int]]:
        """The ranks of each cell of the test of frequencies."""
        found: dict[tuple[int, int], list[int]] = {}
        below = 0.0
        for rank, logprob in enumerate(self.logprobs):
            found.setdefault((min(int(below * _GROUPS), _GROUPS - 1), rank % 2), []).append(rank)
            below += math.exp(logprob)
        return list(found.values())


async def prove_sampling(engine: Engine, *, temperature: float) -> SamplingProof:
    """Have an engine prove that it samples as it reports, at temperature 1 and at `temperature`. Takes 260 draws.

    Raises:
        WrongSampling: it does not; the message says how.
        EngineError: it does not answer.
        BadInput: it does not know one of the options of the requests.
    """
    started = time.monotonic()
    ladder, reported = await _read_ladder(engine)
    await _check_greedy(engine, ladder, reported)
    draws = 0
    samples: list[list[int | None]] = []
    for seed in _SEEDS:
        samples = [
            await _draw(engine, ladder, reported, at, seed=seed + shift)
            for at, shift in ((1.0, 0), (temperature or 1.0, DRAWS))
        ]
        draws += sum(map(len, samples))
        p_value = p_value_of(ladder, samples)
        if p_value >= LEVEL:
            return SamplingProof(draws=draws, p_value=p_value, seconds=time.monotonic() - started)
    raise WrongSampling(f"the engine does not sample the distribution that it reports: {explain(ladder, samples)}")


async def _read_ladder(engine: Engine) -> tuple[Ladder, dict[int, float]]:
    """The ladder of this engine's tokens, and their reported log-probabilities after the prompt."""
    in_prompt = set(await engine.tokenize(_PROMPT))
    texts = [f" {word}" for word in f"{_IN_PROMPT} {_OTHERS}".split()] + _CHARACTERS.split()
    told = dict.fromkeys(await engine.token_ids(" ".join(texts).replace("  ", " ")))
    candidates = [[token for token in told if (token in in_prompt) is inside] for inside in (True, False)]
    half = min(_MOST_TOKENS // 2, *map(len, candidates))
    pairs = list(zip(candidates[0][:half], candidates[1][:half], strict=True))
    reported = await engine.read_logprobs(_PROMPT, tokens=list(chain.from_iterable(pairs)))
    kept = [pair for pair in pairs if min(reported[token] for token in pair) >= _LOWEST]
    if 2 * len(kept) < _LEAST_TOKENS:
        raise EngineError(f"the proof of sampling needs {_LEAST_TOKENS} tokens, and the model offers {2 * len(kept)}")
    return Ladder(tuple(chain.from_iterable(kept))), reported


async def _check_greedy(engine: Engine, ladder: Ladder, reported: dict[int, float]) -> None:
    wanted = [-_GREEDY_LEAD * rank for rank in range(len(ladder.tokens))]
    bias = _bias(ladder, reported, wanted, temperature=1.0)
    [drawn] = await engine.draw(_PROMPT, n=1, temperature=0.0, seed=None, logit_bias=bias, priority=_PRIORITY)
    if drawn != ladder.tokens[0]:
        raise WrongSampling(
            "the engine does not take the likeliest token at temperature 0: it applies a penalty, or reports other "
            "log-probabilities than it samples with"
        )


async def _draw(
    engine: Engine, ladder: Ladder, reported: dict[int, float], temperature: float, *, seed: int
) -> list[int | None]:
    """The ranks of `DRAWS` tokens; None for one outside the ladder."""
    bias = _bias(ladder, reported, ladder.logprobs, temperature=temperature)
    ranks = {token: rank for rank, token in enumerate(ladder.tokens)}
    drawn: list[int | None] = []
    for first in range(0, DRAWS, _AT_ONCE):
        tokens = await engine.draw(
            _PROMPT, n=_AT_ONCE, temperature=temperature, seed=seed + first, logit_bias=bias, priority=_PRIORITY
        )
        drawn += [ranks.get(token) for token in tokens]
    return drawn


def _bias(
    ladder: Ladder, reported: dict[int, float], wanted: Sequence[float], *, temperature: float
) -> dict[int, float]:
    """What to add to the logits so that softmax(logits / temperature) has these log-probabilities."""
    return {
        token: _LIFT + temperature * logprob - reported[token]
        for token, logprob in zip(ladder.tokens, wanted, strict=True)
    }


# ------------------------------------------------------------------------------------------------------------ the test


def p_value_of(ladder: Ladder, samples: Sequence[Sequence[int | None]]) -> float:
    """The probability of an even number of samples that fit the ladder as badly or worse; 0 when a draw is outside it.

    The smallest one of four, times four: of Pearson's test over the cells of all samples (anything), of each sample's
    mean rank (temperatures) and its share of tokens of the prompt (penalties), and of the largest rank (truncations).
    """
    if any(rank is None for sample in samples for rank in sample):
        return 0.0
    drawn = [[rank for rank in sample if rank is not None] for sample in samples]
    probabilities = [math.exp(logprob) for logprob in ladder.logprobs]
    cells = ladder.cells
    mean = math.fsum(rank * p for rank, p in enumerate(probabilities))
    variance = math.fsum((rank - mean) ** 2 * p for rank, p in enumerate(probabilities))
    inside = math.fsum(probabilities[::2])
    statistic = slope = penalty = 0.0
    for sample in drawn:
        slope += (sum(sample) - len(sample) * mean) ** 2 / (len(sample) * variance)
        of_prompt = sum(rank % 2 == 0 for rank in sample)
        penalty += (of_prompt - len(sample) * inside) ** 2 / (len(sample) * inside * (1 - inside))
        counts = Counter(sample)
        for cell in cells:
            expected = len(sample) * math.fsum(probabilities[rank] for rank in cell)
            statistic += (sum(counts[rank] for rank in cell) - expected) ** 2 / expected
    frequencies = chi_square_tail(statistic, len(samples) * (len(cells) - 1))
    tails = [frequencies, chi_square_tail(slope, len(samples)), chi_square_tail(penalty, len(samples))]
    highest = max(chain.from_iterable(drawn))
    below = min(1.0, math.fsum(probabilities[: highest + 1]))
    truncation = below ** sum(map(len, drawn))  # of no draw beyond the highest one
    return min(1.0, 4 * min(*tails, truncation))


def chi_square_tail(statistic: float, degrees: int) -> float:
    """The probability of a larger value of the chi-square distribution with an even number of degrees of freedom."""
    assert degrees % 2 == 0
    half = statistic / 2
    logs = [step * math.log(half) - math.lgamma(step + 1) - half for step in range(degrees // 2)] if half > 0 else [0.0]
    return min(1.0, math.fsum(map(math.exp, logs)))


def explain(ladder: Ladder, samples: Sequence[Sequence[int | None]]) -> str:
    """How samples that failed the test differ from the ladder, in a sentence."""
    probabilities = [math.exp(logprob) for logprob in ladder.logprobs]
    drawn = list(chain.from_iterable(samples))
    ranks = [rank for rank in drawn if rank is not None]
    if len(ranks) < len(drawn):
        return "tokens were drawn that have nearly no probability"
    if len(set(ranks)) == 1:
        return f"all {len(ranks)} draws are the same token, as with top_k 1"
    missing = 1 - math.fsum(probabilities[: max(ranks) + 1])
    inside = sum(rank % 2 == 0 for rank in ranks) / len(ranks)
    expected = math.fsum(probabilities[::2])
    if (1 - missing) ** len(ranks) < LEVEL / 4:
        return f"the least likely {100 * missing:.0f} % were never drawn, as with top_p, top_k or min_p"
    if abs(inside - expected) > 3 * math.sqrt(expected * (1 - expected) / len(ranks)):
        return (
            f"{100 * inside:.0f} % of the draws are tokens of the prompt instead of {100 * expected:.0f} %, as with a "
            "repetition_penalty"
        )
    return "the frequencies of its tokens differ, as with another temperature"

"""Publishes the adapter of a run as a version that the service can verify and serve.

The order is: files, marker, name of the folder, row. A process that is killed in between leaves nothing that could be
taken for a version.
"""

import shutil
from pathlib import Path
from uuid import UUID

from gadfly.adapters import PROBE, Marker, Probe, ProbeRecord, read_marker, seal, sha256_of_tokens
from gadfly.engine_pool import EnginePool
from gadfly.errors import GadflyError
from gadfly.prompts import PromptSet
from gadfly.trainer.rl.policy import Policy
from gadfly.trainer.workspace import publish_folder

PROBE_TOKENS = 32

TOLERANCE_FLOAT32 = 1e-3
"""Largest accepted difference of a log-probability between trainer and engine, in nats. On CPU at most 4e-5 was
measured.
"""

TOLERANCE_BFLOAT16 = 5e-2
"""The same for weights and activations with eight bits of precision."""

# The probe set of every version. A published folder never changes, so it holds no text that may have to be deleted.
PROBES = (
    (
        "A shelf holds 5 rows of 8 books. 6 books are lent out. How many books are on the shelf?",
        "There are 5 * 8 = 40 books. 40 - 6 = 34 are left. The answer is 34.",
    ),
    (
        "Mia saves 4 euros a week. After 9 weeks she spends 11 euros. How much has she left?",
        "She saves 4 + 9 = 13 euros. 13 - 11 = 2. The answer is 2.",
    ),
    (
        "A tank holds 120 litres and loses 3 litres an hour. How much is in it after 7 hours?",
        "It loses 3 * 7 = 21 litres. 120 - 21 = 99. The answer is 99.",
    ),
    (
        "Three friends share 54 sweets equally, and one of them eats 5 of hers. How many has she left?",
        "Each gets 54 / 3 = 16 sweets. 16 - 5 = 11. The answer is 11.",
    ),
)


class NothingLearned(GadflyError):
    """The adapter answers the probe set like the base model, so there is nothing to serve."""


def publish(
    adapter: Path,
    *,
    folder: Path,
    record: ProbeRecord,
    run_id: UUID,
    base_model: str,
    base_sha256: str,
    task: str,
    rank: int,
) -> Marker:
    """Publish `adapter` as `folder`: its files, the probe record of its weights, and the marker.

    A folder that is already published stays unchanged.
    """
    if folder.exists():
        return read_marker(folder)
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(adapter, unfinished)
    (unfinished / PROBE).write_text(record.model_dump_json(indent=1))
    for path in unfinished.iterdir():
        path.chmod(0o644)  # safetensors writes 0600, and engine and service may run as other users
    marker = seal(
        unfinished,
        run_id=str(run_id),
        base_model=base_model,
        base_sha256=base_sha256,
        prompt_set=record.prompt_set,
        task=task,
        rank=rank,
    )
    publish_folder(unfinished, folder)
    return marker


async def probe_record_of_examples(policy: Policy, engines: EnginePool, prompts: PromptSet) -> ProbeRecord:
    """The base model's greedy answers to the probe set under prompts with examples.

    `policy` is one without an adapter. The base model's own log-probabilities are those of the critic. A prompt's
    tokens are kept as their hash, because the examples are texts of callers.

    Raises:
        NothingLearned: no answer can be compared reliably.
    """
    tolerance = _tolerance(policy)
    probes = [
        probe.model_copy(
            update={
                "prompt_tokens": (),
                "prompt_sha256": sha256_of_tokens(probe.prompt_tokens),
                "base_logprobs": probe.logprobs,
            }
        )
        for probe in await _probes(policy, engines, prompts, tolerance=tolerance)
    ]
    return ProbeRecord(prompt_set=prompts.name, tolerance=tolerance, probes=tuple(probes))


async def probe_record(policy: Policy, engines: EnginePool, prompts: PromptSet) -> ProbeRecord:
    """The policy's greedy answers to the probe set, computed by the trainer with its own weights.

    The engine tokenizes the prompts, as it does all prompts. An answer is cut before the first token whose lead over
    the second likeliest is too small for two correct programs to agree on. Blocks while the trainer computes.

    Raises:
        NothingLearned: no log-probability differs from the base model's by more than the tolerance.
    """
    tolerance = _tolerance(policy)
    probes = await _probes(policy, engines, prompts, tolerance=tolerance)
    difference = max(
        (abs(ours - base) for probe in probes for ours, base in zip(probe.logprobs, probe.base_logprobs, strict=True)),
        default=0.0,
    )
    if difference <= tolerance:
        raise NothingLearned(
            f"the adapter answers the probe set like the base model: log-probabilities differ by at most "
            f"{difference:.2g}, which is within the tolerance of {tolerance:.2g}"
        )
    return ProbeRecord(prompt_set=prompts.name, tolerance=tolerance, probes=tuple(probes))


def _tolerance(policy: Policy) -> float:
    return TOLERANCE_FLOAT32 if policy.device.type == "cpu" else TOLERANCE_BFLOAT16


async def _probes(policy: Policy, engines: EnginePool, prompts: PromptSet, *, tolerance: float) -> list[Probe]:
    """The policy's answers, as far as they can be compared. Raises as `probe_record`."""
    probes: list[Probe] = []
    for question, response in PROBES:
        prompt = await engines.tokenize(prompts.critique(question=question, response=response))
        answer = policy.greedy(prompt, PROBE_TOKENS)
        length = 0
        while length < len(answer.tokens) and answer.leads[length] > 4 * tolerance:
            length += 1
        if length:
            probes.append(
                Probe(
                    question=question,
                    response=response,
                    prompt_tokens=prompt,
                    tokens=answer.tokens[:length],
                    logprobs=answer.logprobs[:length],
                    base_logprobs=answer.base_logprobs[:length],
                )
            )
    if not probes:
        raise NothingLearned(
            "the critic's lead is too small for a reliable comparison in every answer of the probe set"
        )
    return probes

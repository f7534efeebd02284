import json
from collections.abc import Iterator
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from gadfly.adapters import CONFIG, WEIGHTS, BadAdapter
from gadfly.engine_client import ACTOR, Sampling
from gadfly.engine_pool import EnginePool
from gadfly.prompts import load
from gadfly.trainer.rl.packing import Group, Pack, pack
from gadfly.trainer.rl.policy import Policy, Which
from tests.support.policies import RANK, bits, policy_of, random_groups
from tests.support.tiny_models import random_adapter, tokenizer

PROMPTS = load("stepwise@1")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def peft_model(model: Path, adapter: Path) -> peft.PeftModel:
    """The same weights in unmodified transformers and peft."""
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    return peft.PeftModel.from_pretrained(base, adapter, is_trainable=True)


def row_logprobs(model: torch.nn.Module, prompt: tuple[int, ...], reply: tuple[int, ...]) -> Tensor:
    logits: Tensor = model(input_ids=torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(reply)[:, None])[:, 0]


def expected_logprobs(model: torch.nn.Module, groups: list[Group], row: Pack) -> Tensor:
    """One row per reply, one after another."""
    return torch.cat(
        [row_logprobs(model, groups[index].prompt, reply) for index in row.groups for reply in groups[index].replies]
    )


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize(
    ("count", "replies", "why"),
    [(1, 1, "plainly causal"), (1, 4, "a shared prompt"), (3, 1, "three single rows"), (4, 3, "all of it")],
)
def test_a_pack_equals_one_row_per_reply(
    model: Path, tmp_path: Path, count: int, replies: int, why: str, gradient_checkpointing: bool
) -> None:
    policy = policy_of(model, gradient_checkpointing=gradient_checkpointing)
    policy.save_adapter(tmp_path)
    expected_model = peft_model(model, tmp_path)
    groups = random_groups(count, replies=replies)
    [row] = pack(groups, 10_000)

    found, entropies = policy.forward(row)
    expected = expected_logprobs(expected_model, groups, row)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0, msg=lambda text: f"{why}: {text}")
    assert (entropies > 0).all()

    weights = torch.randn(len(found), generator=torch.Generator().manual_seed(1)) / len(found)
    (weights * found).sum().backward()  # type: ignore[no-untyped-call]
    (weights * expected).sum().backward()  # type: ignore[no-untyped-call]
    for (name, weight), other in zip(
        policy.weights.items(), (item for key, item in expected_model.named_parameters() if "lora_" in key), strict=True
    ):
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, other.grad, atol=1e-5, rtol=1e-4, msg=f"{name}, {why}")


def test_replies_do_not_attend_to_each_other(model: Path) -> None:
    policy = policy_of(model)
    group = Group.unscored([5, 6, 7], [8, 9, 10], [11, 12], [8, 9, 10])
    other = Group.unscored([5, 6, 7], [8, 9, 10], [200, 201], [8, 9, 10])
    with torch.no_grad():
        first, _ = policy.forward(pack([group], 1)[0])
        second, _ = policy.forward(pack([other], 1)[0])
    torch.testing.assert_close(first[:3], second[:3], atol=1e-6, rtol=0)
    torch.testing.assert_close(first[:3], first[5:], atol=1e-6, rtol=0)
    assert (first[3:5] - second[3:5]).abs().max() > 1e-3


def test_a_pass_uses_the_policy_the_anchor_or_the_base(model: Path, tmp_path: Path) -> None:
    policy = policy_of(model)
    groups = random_groups(1)
    [row] = pack(groups, 1)
    base_model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    expected = {Which.BASE: expected_logprobs(base_model, groups, row)}
    for which in (Which.POLICY, Which.ANCHOR):
        policy.save_adapter(tmp_path / which, which)
        expected[which] = expected_logprobs(peft_model(model, tmp_path / which), groups, row)
    assert (expected[Which.POLICY] - expected[Which.ANCHOR]).abs().max() > 0.1
    # Each follows each other once.
    for which in (*Which, Which.POLICY, Which.BASE, Which.ANCHOR, Which.POLICY):
        found, _ = policy.forward(row, which)
        torch.testing.assert_close(found, expected[which].detach(), atol=1e-5, rtol=0)
        assert found.requires_grad == (which is Which.POLICY)

    policy.anchor_here()
    anchored, _ = policy.forward(row, Which.ANCHOR)
    torch.testing.assert_close(anchored, expected[Which.POLICY].detach(), atol=1e-5, rtol=0)
    assert bits(policy) == bits(policy, Which.ANCHOR)
    with torch.no_grad():
        next(iter(policy.weights.values())).add_(1.0)
    assert bits(policy) != bits(policy, Which.ANCHOR)  # the anchor is a copy


def test_only_the_policy_has_gradients(model: Path) -> None:
    policy = policy_of(model)
    [row] = pack(random_groups(1), 1)
    policy.forward(row, Which.ANCHOR)
    policy.forward(row)[0].sum().backward()  # type: ignore[no-untyped-call]
    trained = {name for name, item in policy._model.named_parameters() if item.grad is not None}
    assert len(trained) == 2 * 7 * 2  # A and B of seven projections in two layers
    assert all(".policy." in name for name in trained)


def test_a_new_policy_equals_the_base_model_and_depends_on_its_seed(model: Path) -> None:
    state = torch.get_rng_state()
    first, same, other = (Policy(model, rank=RANK, alpha=8, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())  # the global random state is untouched
    assert bits(first) == bits(same) != bits(other)
    assert bits(first) == bits(first, Which.ANCHOR)
    [row] = pack(random_groups(1), 1)
    with torch.no_grad():
        torch.testing.assert_close(first.forward(row)[0], first.forward(row, Which.BASE)[0], atol=0, rtol=0)


def test_a_loaded_adapter_has_the_bits_of_the_saved_one(model: Path, tmp_path: Path) -> None:
    policy, other = policy_of(model, seed=1, name="a-model"), policy_of(model, seed=2)
    policy.save_adapter(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 8)
    assert config["base_model_name_or_path"] == "a-model"
    assert config["inference_mode"]
    names = set(load_file(tmp_path / WEIGHTS))
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in names
    assert len(names) == 28
    assert bits(other) != bits(policy)
    other.load_adapter(tmp_path)
    assert bits(other) == bits(policy)
    anchor = bits(other, Which.ANCHOR)
    other.save_adapter(tmp_path / "anchor", Which.ANCHOR)
    policy.load_adapter(tmp_path / "anchor", Which.ANCHOR)
    assert bits(policy, Which.ANCHOR) == anchor != bits(policy)


def test_an_adapter_of_another_kind_is_refused(model: Path, tmp_path: Path) -> None:
    policy = policy_of(model)
    with pytest.raises(BadAdapter, match="rank"):
        policy.load_adapter(random_adapter(tmp_path / "rank", model=model, seed=0, rank=8))
    Policy(model, rank=RANK, alpha=16, seed=0).save_adapter(tmp_path / "alpha")
    with pytest.raises(BadAdapter, match="alpha"):
        policy.load_adapter(tmp_path / "alpha")


def test_greedy_takes_the_likeliest_token_and_returns_its_lead(model: Path, tmp_path: Path) -> None:
    policy = policy_of(model)
    prompt = tuple(range(20, 35))
    policy.save_adapter(tmp_path)
    expected_model = peft_model(model, tmp_path)
    found = policy.greedy(prompt, 9)
    earlier: list[int] = []
    for token, lead in zip(found.tokens, found.leads, strict=True):
        logits = expected_model(input_ids=torch.tensor([[*prompt, *earlier]])).logits[0, -1]
        best, second = logits.topk(2).values.tolist()
        assert token == int(logits.argmax())
        assert lead == pytest.approx(best - second, abs=1e-4)
        earlier.append(token)
    expected = row_logprobs(expected_model, prompt, found.tokens)
    assert found.logprobs == pytest.approx(expected.tolist(), abs=1e-5)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    assert found.base_logprobs == pytest.approx(row_logprobs(base, prompt, found.tokens).tolist(), abs=1e-5)


def test_greedy_stops_at_the_end_of_the_turn(critic_model: Path) -> None:
    policy = Policy(critic_model, rank=RANK, alpha=8, seed=0)
    tokens = tokenizer()
    prompt = tokens.apply_chat_template(
        [{"role": "user", "content": "Judge this: 1 + 1 = 3. WRONGMARK"}],
        add_generation_prompt=True,
        return_dict=False,
    )
    found = policy.greedy(prompt, 64)
    assert tokens.decode(found.tokens).endswith("Wrong\nExplanation: A sum is off.<|im_end|>")
    assert found.logprobs == pytest.approx(found.base_logprobs, abs=1e-5)  # B = 0: it equals the base model


async def test_engine_and_policy_agree(engine_url: str, critic_model: Path, tmp_path: Path) -> None:
    policy = policy_of(critic_model, size=0.15)
    folder, name = tmp_path / "adapter", f"numerics-{tmp_path.name}"
    policy.save_adapter(folder)
    pool = EnginePool.connect([engine_url], timeout_s=60)
    [engine] = pool.members
    prompt = PROMPTS.critique(question="What is 1 + 1?", response="It is 3. WRONGMARK")
    await engine.load_adapter(name, folder)
    try:
        sampling = Sampling(n=4, temperature=1.0, max_tokens=40, seed=2, with_tokens=True)
        adapted = await pool.chat(prompt, model=name, sampling=sampling)
        base = await pool.chat(prompt, model=ACTOR, sampling=sampling)
        [greedy] = await pool.chat(prompt, model=name, sampling=Sampling(max_tokens=12, with_tokens=True))
    finally:
        await engine.unload_adapter(name)
        await pool.aclose()
    for which, replies in ((Which.POLICY, adapted), (Which.BASE, base)):
        assert len(replies) == 4
        [row] = pack([Group.unscored(replies[0].prompt_tokens, *(reply.tokens for reply in replies))], 1)
        with torch.no_grad():
            found, _ = policy.forward(row, which)
        expected = [value for reply in replies for value in reply.logprobs]
        assert found.tolist() == pytest.approx(expected, abs=1e-3)
    again = policy.greedy(greedy.prompt_tokens, 12)
    close = next((place for place, lead in enumerate(again.leads) if lead < 0.01), len(again.tokens))
    assert close > 0
    assert again.tokens[:close] == greedy.tokens[:close]
    assert again.logprobs[:close] == pytest.approx(greedy.logprobs[:close], abs=1e-3)

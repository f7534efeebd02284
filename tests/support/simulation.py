"""An engine without a model, around the foreground-first scheduler. Imports vllm, which takes seconds."""

import random
from collections import deque
from pathlib import Path

import torch
from vllm.config import CacheConfig, LoRAConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from gadfly.engine.scheduler import foreground_first

BLOCK = 16


class Simulation:
    """An engine's core without a model: in each step every request whose prompt is computed gets one token.

    With `in_flight` 2 it schedules a step before it hears of the one before, as vLLM does on a GPU.
    """

    def __init__(
        self, model: Path, *, max_seqs: int, max_loras: int, budget: int, step_s: float,
        kv_blocks: int = 200, in_flight: int = 1, seed: int = 0,
    ) -> None:  # fmt: skip
        self.max_seqs, self.max_loras, self.step_s, self.in_flight = max_seqs, max_loras, step_s, in_flight
        self.tokens: dict[str, int] = {}
        self.steps = 0
        self.clock_s = 100.0
        self.random = random.Random(seed)
        self._pending: deque[tuple[SchedulerOutput, ModelRunnerOutput]] = deque()

        config = VllmConfig(
            model_config=ModelConfig(model=str(model), dtype="float32", max_model_len=4096),
            scheduler_config=SchedulerConfig(
                max_model_len=4096,
                is_encoder_decoder=False,
                max_num_seqs=max_seqs,
                max_num_batched_tokens=budget,
                policy="priority",
            ),
            cache_config=CacheConfig(block_size=BLOCK, enable_prefix_caching=True),
            lora_config=LoRAConfig(max_loras=max_loras, max_cpu_loras=2 * max_loras),
        )
        config.scheduler_config.async_scheduling = in_flight > 1  # the configuration refuses it on CPU
        config.cache_config.num_gpu_blocks = kv_blocks
        spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=32, dtype=torch.float32)
        init_none_hash(sha256)
        self._block_hasher = get_request_block_hasher(BLOCK, sha256)
        self.scheduler = foreground_first(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(
                num_blocks=kv_blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]
            ),
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK,
            log_stats=True,
        )
        self.scheduler.now_s = lambda: self.clock_s

    def add(self, name: str, *, priority: int, prompt: int = 8, answer: int = 10, lora: int | None = None) -> str:
        request = Request(
            request_id=name,
            prompt_token_ids=self.random.choices(range(3, 700), k=prompt),
            sampling_params=SamplingParams(max_tokens=answer, ignore_eos=True),
            pooling_params=None,
            lora_request=LoRARequest(f"adapter-{lora}", lora, "/nowhere") if lora else None,
            priority=priority,
            block_hasher=self._block_hasher,
        )
        self.tokens[name] = 0
        self.scheduler.add_request(request)
        return name

    def abort(self, *names: str) -> None:
        self.scheduler.finish_requests(names, RequestStatus.FINISHED_ABORTED)
        self.check()

    def step(self) -> set[str]:
        """Makes one step and returns who was in it."""
        output = self.scheduler.schedule()
        requests = [self.scheduler.requests[name] for name in output.num_scheduled_tokens]
        assert len({request.lora_request.lora_int_id for request in requests if request.lora_request}) <= self.max_loras
        names = [request.request_id for request in requests]
        made = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: index for index, name in enumerate(names)},
            sampled_token_ids=[[] if request.is_prefill_chunk else [5] for request in requests],
        )
        self._pending.append((output, made))
        # A step without anyone in it is over at once, so nothing is left in flight behind it.
        while len(self._pending) >= (self.in_flight if names else 1):
            for outputs in self.scheduler.update_from_output(*self._pending.popleft()).values():
                for answer in outputs.outputs:
                    self.tokens[answer.request_id] += len(answer.new_token_ids)
        self.steps += 1
        self.clock_s += self.step_s
        self.check()
        return set(names)

    def run(self, *names: str, limit: int = 3000) -> int:
        """Steps until the named requests, or all, have ended; returns how many steps that took."""
        start = self.steps
        while any(name in self.scheduler.requests for name in names or tuple(self.scheduler.requests)):
            assert self.steps - start < limit, f"no end in sight: {self.unfinished()}"
            self.step()
        return self.steps - start

    def check(self) -> None:
        listed = [request.request_id for request in (*self.scheduler.running, *self.scheduler.waiting)]
        assert sorted(listed) == sorted(self.scheduler.requests)
        assert len(self.scheduler.running) <= self.max_seqs

    def unfinished(self) -> dict[str, str]:
        return {name: str(request.status) for name, request in self.scheduler.requests.items()}

    def is_idle(self) -> bool:
        return not self.scheduler.has_unfinished_requests() and self.scheduler.get_kv_cache_usage() == 0.0

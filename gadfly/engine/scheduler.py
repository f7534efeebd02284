"""Foreground-first scheduling: background requests pause while a caller waits, and keep their KV cache.

vLLM's own priority scheduling only orders the waiting queue: a live request still shares every step with all rollouts
admitted before it. In this scheduler a request of priority 0 or less is foreground, and a higher number is background.
While a foreground request can run, background requests are skipped, except in an occasional step that prevents
starvation. If a foreground request lacks a slot or KV cache, the last background request is preempted.

Every request stays in vLLM's own lists, so that aborts, counts and errors find it: a skipped request in `running` gets
the mark that vLLM uses to space out decodes, and the waiting queue reports that it is empty when only background
requests are left in it. This uses vLLM's private interface; `engine/command.py` lists the supported releases.
"""

import time
from collections.abc import Callable
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import PriorityRequestQueue, SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

BACKGROUND_SHARE = 0.1
"""Minimum share of the time for background requests."""

MAX_HOLD_S = 5.0
"""Longest pause of background requests, in seconds."""


def foreground_first(*, vllm_config: Any, **kwargs: Any) -> Scheduler:
    """Builds the scheduler for `--scheduler-cls`: the synchronous or the asynchronous one, as vLLM is configured."""
    scheduler_class = AsyncForegroundFirst if vllm_config.scheduler_config.async_scheduling else ForegroundFirst
    return scheduler_class(vllm_config=vllm_config, **kwargs)


def is_foreground(request: Request) -> bool:
    """Whether a caller waits for this request. In vLLM, lower priority numbers go first."""
    return bool(request.priority <= 0)


class GatedQueue(PriorityRequestQueue):  # type: ignore[misc]  # mypy does not follow vllm
    """A priority queue that, while `closed`, is falsy when only background requests are left."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def __bool__(self) -> bool:
        return bool(self._heap) and not (self.closed and not is_foreground(self._heap[0]))

    def has_ready_foreground(self) -> bool:
        """Whether a foreground request can be admitted now, and does not wait for a grammar or a transfer."""
        return any(is_foreground(request) and _is_ready(request) for request in self._heap)


def _is_ready(request: Request) -> bool:
    return request.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED)


class ForegroundFirst(Scheduler):  # type: ignore[misc]  # as above
    """vLLM's scheduler, with background requests paused while a foreground request can run."""

    waiting: GatedQueue

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.policy is not SchedulingPolicy.PRIORITY:
            raise ValueError("Foreground-first scheduling needs --scheduling-policy priority.")
        self.waiting = GatedQueue()
        self.now_s: Callable[[], float] = time.monotonic
        self._background_since_s: float | None = None  # start of the last step, if it had background requests
        self._hold_until_s = 0.0
        self._hold_was_idle = False
        self._needs_room = False

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """One step of vLLM's scheduler; background requests take part only if no foreground request can run."""
        hold = self._shall_hold()
        evicted = self._evict_background() if hold and self._needs_room else None
        self._park(background=hold)
        self.waiting.closed = hold
        try:
            output = super().schedule(*args, **kwargs)
        finally:
            self.waiting.closed = False
        self._learn(output, hold=hold, evicted=evicted)
        return output

    def _shall_hold(self) -> bool:
        now_s = self.now_s()
        if self._background_since_s is not None:
            # After a step with background work, the pause is as long as keeps its share at BACKGROUND_SHARE.
            rest_s = (now_s - self._background_since_s) * (1 / BACKGROUND_SHARE - 1)
            self._hold_until_s = now_s + min(rest_s, MAX_HOLD_S)
            self._background_since_s = None
        if self._hold_was_idle or now_s >= self._hold_until_s:
            return False
        return any(map(is_foreground, self.running)) or self.waiting.has_ready_foreground()

    def _park(self, *, background: bool) -> None:
        """Marks the running requests that vLLM must skip in the next step.

        These are the paused background requests, and all requests whose adapter finds no slot: requests admitted during
        a pause can bring more adapters into `running` than fit into one step, which would crash the engine.
        """
        slots = self.lora_config.max_loras if self.lora_config else 0
        adapters: set[int] = set()
        for request in sorted(self.running, key=is_foreground, reverse=True):
            adapter = request.lora_request.lora_int_id if request.lora_request else None
            has_slot = adapter is None or adapter in adapters or len(adapters) < slots
            if not has_slot or (background and not is_foreground(request)):
                # `schedule` increments `current_step` before it compares.
                request.next_decode_eligible_step = max(request.next_decode_eligible_step, self.current_step + 2)
            elif adapter is not None:
                adapters.add(adapter)

    def _evict_background(self) -> Request | None:
        """Preempts the background request that vLLM itself would choose, to make room for a foreground request."""
        candidates = [
            request
            for request in self.running
            if not is_foreground(request) and self._request_blocks_can_be_freed(request)
        ]
        if not candidates:
            return None
        victim: Request = max(candidates, key=lambda request: (request.priority, request.arrival_time))
        self.running.remove(victim)
        self._preempt_request(victim, time.monotonic(), drop_stale_output=self.requires_kv_delivery)
        return victim

    def _learn(self, output: SchedulerOutput, *, hold: bool, evicted: Request | None) -> None:
        scheduled = [self.requests[request_id] for request_id in output.num_scheduled_tokens]
        if not all(map(is_foreground, scheduled)):
            self._background_since_s = self.now_s()
        self._needs_room = self._lacks_room(output, evicted)
        can_evict = any(not is_foreground(request) for request in self.running)
        # If no foreground request ran during the pause, the pause was useless: the next step has none.
        self._hold_was_idle = hold and not any(map(is_foreground, scheduled)) and not (self._needs_room and can_evict)

    def _lacks_room(self, output: SchedulerOutput, evicted: Request | None) -> bool:
        """Whether the queue's first request is foreground and lacks only a slot or KV cache."""
        if not self.waiting or self._pause_state is not PauseState.UNPAUSED:
            return False
        first = self.waiting.peek_request()
        preempted = (output.preempted_req_ids or set()) - ({evicted.request_id} if evicted else set())
        return (
            is_foreground(first)
            and _is_ready(first)
            and first not in self.deferred_waiting  # vLLM skipped it for another reason
            and not preempted  # vLLM admits no request in such a step
            and output.total_num_scheduled_tokens < self.max_num_scheduled_tokens
        )


class AsyncForegroundFirst(ForegroundFirst, AsyncScheduler):  # type: ignore[misc]  # as above
    """The variant for asynchronous scheduling, vLLM's default on a GPU: steps are scheduled one step ahead."""

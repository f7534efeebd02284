"""The actor: solves questions and refines answers. It is the critic's base model on the engines, or another endpoint.

Serving, training and evaluation get it from `open_actor`, and differ in nothing else.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from gadfly.access import Access
from gadfly.chat import Chat, ChatReply, OnDelta
from gadfly.endpoint_actor import EndpointActor
from gadfly.engine_client import ACTOR, OnText, Reply, Sampling
from gadfly.engine_pool import EnginePool
from gadfly.errors import BadInput
from gadfly.prompts import Prompt
from gadfly.records import Spent
from gadfly.settings import Settings


class Actor(Protocol):
    """A model that solves and refines."""

    @property
    def name(self) -> str:
        """The model's name, which is stored with its texts."""

    @property
    def spent(self) -> Spent:
        """What its own endpoint has answered this process; nothing for a model on the engines."""

    async def chat(self, prompt: Prompt, *, sampling: Sampling, on_text: OnText | None = None) -> tuple[Reply, ...]:
        """Sample `sampling.n` replies to one prompt, in order of sample.

        Raises:
            PromptTooLong: the prompt does not fit the model.
            EngineUnavailable, EngineTimeout: it does not answer at present, or not in time.
            EngineRefused: it refuses the key or the model.
        """

    async def converse(self, chat: Chat, *, on_delta: OnDelta | None = None) -> tuple[ChatReply, ...]:
        """Continue a caller's own conversation `chat.n` times, in order of choice.

        Raises:
            BadInput: it does not support an option or a message of this conversation; else as `chat`.
        """

    async def check(self) -> str:
        """One sentence about its state, without a full stop.

        Raises:
            EngineError: the reason why it cannot answer.
        """

    async def gaps(self) -> tuple[str, ...]:
        """The missing features for reproducible training, as sentences with the consequence. Raises as `chat`."""

    async def aclose(self) -> None:
        """Close its connections."""


@dataclass(frozen=True, slots=True)
class BaseActor:
    """The critic's base model on the engines."""

    engines: EnginePool
    name: str = ACTOR
    spent: Spent = field(default_factory=Spent)

    async def chat(self, prompt: Prompt, *, sampling: Sampling, on_text: OnText | None = None) -> tuple[Reply, ...]:
        return await self.engines.chat(prompt, model=ACTOR, sampling=sampling, on_text=on_text)

    async def converse(self, chat: Chat, *, on_delta: OnDelta | None = None) -> tuple[ChatReply, ...]:
        _require_text(chat)
        messages = tuple(_for_template(message) for message in chat.messages)
        return await self.engines.converse(replace(chat, messages=messages), on_delta=on_delta)

    async def check(self) -> str:
        return "the base model on the engines"

    async def gaps(self) -> tuple[str, ...]:
        return ()

    async def aclose(self) -> None:
        """Nothing: the engines belong to their pool."""


def open_actor(settings: Settings, engines: EnginePool) -> Actor:
    """The actor of a deployment.

    Raises:
        BadSettings: the file with certificates cannot be used.
    """
    return open_endpoint(settings) if settings.actor_url else BaseActor(engines, settings.model)


def open_endpoint(settings: Settings) -> EndpointActor:
    """The actor at `settings.actor_url`. Raises as `open_actor`."""
    key = "" if settings.actor_key is None else settings.actor_key.get_secret_value()
    return EndpointActor(
        settings.actor_url,
        access=Access(key=key, model=settings.actor_model, ca_file=settings.ca_file),
        timeout_s=settings.actor_timeout_s,
        concurrency=settings.actor_concurrency,
        retries=settings.actor_retries,
    )


def _for_template(message: dict[str, Any]) -> dict[str, Any]:
    """A turn as chat templates know it: they have system turns and no developer turns."""
    return {**message, "role": "system"} if message["role"] == "developer" else message


def _require_text(chat: Chat) -> None:
    """Refuse a conversation that the base model on the engines cannot answer.

    Raises:
        BadInput: the conversation has tools, or asks for the log-probabilities of other tokens.
    """
    if chat.options.get("tools") or any(
        message["role"] == "tool" or message.get("tool_calls") for message in chat.messages
    ):
        raise BadInput(
            "the actor is the base model on the engines, which calls no tools: set GADFLY_ACTOR_URL to an "
            "endpoint that does",
            field="tools" if chat.options.get("tools") else "messages",
        )
    if chat.options.get("top_logprobs"):
        # Beside a critique, whose labels are in the same batch, an engine without our plugin leaves them out.
        raise BadInput(
            "top_logprobs must be 0: the engines give the log-probabilities of sampled tokens only",
            field="top_logprobs",
        )

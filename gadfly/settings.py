"""The settings of a deployment: `GADFLY_*` in the environment, each also a command-line flag.

Settings are built once, at the edge (`cli/` or a process's own `__main__`), and passed down. No other module reads the
environment, and importing a file needs no configuration.
"""

import difflib
import ipaddress
import os
import re
import shlex
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from gadfly.access import Access
from gadfly.errors import BadSettings
from gadfly.prompts import available
from gadfly.records import CanaryTerms, Kind

ENV_PREFIX = "GADFLY_"
# Variables with the prefix that are not settings: of the Makefile, of `gadfly up` to mark its processes, of the tests.
_NOT_SETTINGS = frozenset({"EXTRA", "RUN_MARK", "TEST_ENGINE_URL"})
DEFAULT_MODEL = "smollm2-135m-instruct"
NAME_SCHEME = "dns+"
"""Before an http address: each address of its host is an engine."""


class Device(StrEnum):
    AUTO = "auto"
    CPU = "cpu"
    GPU = "gpu"


class SplitBlocks(StrEnum):
    """Which questions are always on one side of the training wall."""

    NEAR = "near"  # near-duplicates: equal but for numbers, wrappers or a few words
    EXACT = "exact"  # spellings of one question, with or without a wrapper


class LogFormat(StrEnum):
    CONSOLE = "console"
    JSON = "json"


def _split_commas(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


def _empty_is_unset(value: Any) -> Any:
    return None if value == "" else value


def _task(name: str) -> str:
    """A folder as an absolute path, because processes start in other folders; the name of a built-in task as it is."""
    is_folder = os.sep in name or Path(name, "task.toml").is_file()
    return str(_absolute(Path(name))) if is_folder else name


def _every_task(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(_task, names))


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "gadfly"


Folder = Annotated[Path, AfterValidator(_absolute)]
Addresses = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_commas)]


class Settings(BaseSettings):
    """Every setting of a deployment. Times in seconds, sizes in bytes unless the name says otherwise."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="ignore", frozen=True, env_ignore_empty=True)

    home: Folder = Field(Path("~/.gadfly"), validate_default=True, description="Folder for all local data.")
    cache: Folder = Field(
        default_factory=_user_cache,
        validate_default=True,
        description="Folder that the deployments of this machine share, for the default model. "
        "Default: gadfly in XDG_CACHE_HOME or ~/.cache.",
    )

    host: str = Field(
        "127.0.0.1", description="Address that the service listens on. Any address but loopback requires API keys."
    )
    port: int = Field(8400, ge=1, le=65535, description="Port that the service listens on.")
    cors_origins: Addresses = Field(
        (), description="Comma-separated origins (https://app.example.org) whose web pages may call the API."
    )
    root_path: str = Field(
        "", description="Path under which a proxy serves the service, such as /gadfly. Empty: its root."
    )
    trusted_proxies: Addresses = Field(
        ("127.0.0.1", "::1"),
        validate_default=True,
        description="Comma-separated addresses or networks of the proxies whose X-Forwarded-Proto, X-Forwarded-For and "
        "X-Forwarded-Prefix count.",
    )
    log_format: LogFormat = Field(LogFormat.CONSOLE, description="Log lines for people (console) or machines (json).")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="Lowest level that is logged.")

    database_url: Annotated[SecretStr | None, BeforeValidator(_empty_is_unset)] = Field(
        None, description="Your own Postgres, as postgresql+psycopg://... Unset: an embedded one under GADFLY_HOME."
    )
    database_pool: int = Field(5, ge=2, le=100, description="Maximum connections of each service process.")
    database_timeout_s: float = Field(5.0, gt=0, description="Time limit of connecting, and of each statement.")

    engine_urls: Addresses = Field(
        (),
        description="Comma-separated engines: http://host:port or unix:///path, or dns+http://name:port for an engine "
        "at each address of a name, which come and go without a restart. Unset: `gadfly up` starts an engine.",
    )
    engine_key: Annotated[SecretStr | None, BeforeValidator(_empty_is_unset)] = Field(
        None,
        description="API key of the engines. Several, comma-separated: one for each address, in the same order; empty "
        "where an engine needs none.",
    )
    engine_model: str = Field(
        "",
        description="Name under which your own engines serve the base model. Unset: the one that an engine lists; "
        "needed where it lists several.",
    )
    ca_file: Annotated[Folder | None, BeforeValidator(_empty_is_unset)] = Field(
        None,
        description="PEM file of certificate authorities to trust besides the usual ones, for engines and actors on "
        "https addresses.",
    )
    engine_timeout_s: float = Field(300.0, gt=0, description="Time limit of one generation.")
    engine_device: Device = Field(Device.AUTO, description="Device of the engine that `gadfly up` starts.")
    engine_dtype: str = Field(
        "auto", description="Data type of the weights. auto: float32 on CPU, vLLM's choice on GPU."
    )
    engine_max_model_len: int = Field(2048, ge=128, description="Maximum tokens of prompt and completion together.")
    engine_max_num_seqs: int = Field(32, ge=1, description="Sequences that the engine runs concurrently.")
    engine_kv_cache_bytes: int = Field(
        512 * 2**20, ge=2**20, description="KV cache on CPU. (On GPU it is a share of memory.)"
    )
    engine_max_queued: int = Field(256, ge=1, description="Requests that an engine queues before it answers 503.")
    engine_args: str = Field("", description="Additional vLLM flags for the engine that `gadfly up` starts.")

    model: str = Field(DEFAULT_MODEL, description="Base model of actor and critic: the default, a folder, or a hub id.")
    model_revision: str = Field(
        "",
        description="Pins the base model. Of a hub id: the commit, 40 hex digits. Of a folder: its hash, as "
        "`gadfly model --hash` prints it (sha256:...). Engine and trainer refuse other files. Empty: not pinned.",
    )
    actor_url: str = Field(
        "",
        description="An OpenAI chat endpoint that solves and refines, as https://host/v1. Unset: the base model on the "
        "engines does.",
    )
    actor_model: str = Field("", description="Model of that endpoint. Answers and refinements are stored under it.")
    actor_key: Annotated[SecretStr | None, BeforeValidator(_empty_is_unset)] = Field(
        None, description="API key of that endpoint."
    )
    actor_timeout_s: float = Field(120.0, gt=0, description="Time limit of one request to that endpoint.")
    actor_concurrency: int = Field(
        8, ge=1, description="Requests that a process sends to that endpoint at the same time; further ones wait."
    )
    actor_retries: int = Field(
        4, ge=0, description="Retries of a request to that endpoint while it is unavailable or limits its callers."
    )
    task: Annotated[str, AfterValidator(_task)] = Field(
        "math",
        description="What the critic judges: a task of `gadfly tasks list`, or a folder with a file task.toml. "
        "With several tasks, the one of requests that name none.",
    )
    tasks: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_commas), AfterValidator(_every_task)] = Field(
        (),
        description="Comma-separated tasks to serve besides it: built-in ones, folders with a file task.toml, or "
        "folders of such folders. Those of `gadfly tasks add` are served too.",
    )
    grader_url: str = Field(
        "",
        description="Address of the service or model that grades answers, for a task whose grader is of kind http or "
        "judge.",
    )
    grader_key: Annotated[SecretStr | None, BeforeValidator(_empty_is_unset)] = Field(
        None, description="API key of that address."
    )
    prompts: str = Field(
        "stepwise@1", description="Prompt set, as name@version, of a task that has no prompts of its own."
    )
    adapter_rank: int = Field(16, ge=1, le=512, description="LoRA rank of every critic of this deployment.")
    adapter_slots: int = Field(
        4,
        ge=2,
        description="Critics that the engine can serve in one step. With more tasks than that, idle ones give up their "
        "slot and are loaded again at their next request.",
    )

    adapters: Annotated[Folder | None, BeforeValidator(_empty_is_unset)] = Field(
        None, description="Folder of published critics, shared by trainer, service and engine. Unset: in GADFLY_HOME."
    )
    auto_promote: bool = Field(True, description="Serve a new critic as soon as the gate decides to promote it.")
    swap_quorum: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of the engines that must prove a new critic before it becomes the live one. The others get "
        "no requests for it until they have proven it too.",
    )
    canary_share: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the requests that a promoted critic answers first, while the one before answers the "
        "rest; an episode keeps its critic. 0: it answers all of them at once.",
    )
    canary_s: int = Field(
        3600, ge=1, description="Seconds after which a canary's critic answers all requests, unless it was rolled back."
    )
    canary_requests: int = Field(
        0, ge=0, description="Answers of a canary's critic after which it answers all requests. 0: no such limit."
    )
    auto_rollback: bool = Field(
        True, description="Roll back when labelled live traffic shows that the new critic is worse."
    )
    shadow_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of labelled answers that the critic before judges too, at low priority, after a promotion.",
    )
    candidate_share: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Share of the traffic that a candidate about which the gate has not decided judges too, at low "
        "priority: its disagreements with the live critic come first in the label queue.",
    )
    chat_critique_share: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Share of the answers of /v1/chat/completions that the live critic judges in the background, at "
        "low priority.",
    )

    train: bool = Field(True, description="Whether `gadfly up` starts the trainer.")
    train_schedule: str = Field("", description="Training schedule in cron syntax (0 3 * * *). Empty: on request only.")
    train_after_labels: int = Field(0, ge=0, description="Train after this many new labels. 0: on request only.")
    train_config: Annotated[Folder | None, BeforeValidator(_empty_is_unset)] = Field(
        None, description="JSON file of training options that differ from the defaults, used by every run."
    )
    train_processes: int = Field(1, ge=1, description="Processes of a training run, one per GPU.")
    train_launch_args: str = Field(
        "", description="Additional flags of `accelerate launch` for several processes: --use_fsdp ..."
    )
    train_threads: int = Field(0, ge=0, description="CPU threads of a training run. 0: all cores but one.")

    max_body_bytes: int = Field(2**20, ge=1024, description="Largest request body.")
    max_text_chars: int = Field(50_000, ge=100, description="Longest question, response, critique or comment.")
    max_samples: int = Field(16, ge=1, description="Largest `n` or `samples` of one request.")
    max_rounds: int = Field(8, ge=1, description="Largest `rounds` of one request.")
    max_tokens: int = Field(
        512, ge=1, description="Maximum tokens of a critique or refinement, unless the request sets it."
    )
    temperature: float = Field(0.7, ge=0, le=2, description="Sampling temperature, unless the request sets it.")
    max_in_flight: int = Field(
        256,
        ge=1,
        description="Maximum texts that each worker has generated at the same time: 1 for a request, or its `n` or "
        "`samples`. Further requests are answered 429.",
    )
    workers: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes that answer requests on one address, each with its own connections to Postgres. One is "
        "enough until it uses a whole core.",
    )

    max_key_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Largest share of one key in the right and in the wrong answers of training and of the held-out "
        "set. It applies where three keys or more label.",
    )
    heldout_share: float = Field(0.2, gt=0, lt=1, description="Share of new questions that training never sees.")
    split_blocks: SplitBlocks = Field(
        SplitBlocks.NEAR,
        description="Questions that share a side: near-duplicates, also with other numbers (near); or only spellings "
        "of one question (exact), for traffic that is made of a few templates.",
    )
    retire_after_looks: int = Field(
        5,
        ge=0,
        description="A held-out question that so many gates took as evidence is retired into training with its block, "
        "as long as more questions are held out than one gate judges; 0: never.",
    )
    retire_share: float = Field(
        0.1, gt=0, le=1, description="Largest share of the held-out questions that is retired after one run."
    )
    redactor: str = Field(
        "",
        description="What removes personal data from texts before they are stored: a Python function, as "
        "module:function, or the address of an HTTP service. Empty: nothing does.",
    )
    retention: Addresses = Field(
        (),
        description="Comma-separated ages after which rows are deleted, by origin: critique=365d,refine=365d,chat=30d. "
        "Origins: critique, refine, chat, import. Empty: rows are kept.",
    )
    spool_max_bytes: int = Field(
        2**30, ge=2**12, description="Disk space of the spool, used while Postgres is unavailable."
    )
    min_free_bytes: int = Field(
        100 * 2**20,
        ge=0,
        description="Free space on the disk under GADFLY_HOME below which the service refuses requests (507), before "
        "the engine works for them.",
    )
    grade_timeout_s: float = Field(2.0, gt=0, description="Time limit of comparing one answer with its reference.")
    grade_processes: int = Field(
        2, ge=1, le=64, description="Processes that compare expressions. Numbers and words have a process of their own."
    )

    url: str = Field("", description="Address of the service, for the command line. Unset: http://HOST:PORT.")
    key: Annotated[SecretStr | None, BeforeValidator(_empty_is_unset)] = Field(
        None, description="API key that the command line sends."
    )

    @field_validator("engine_urls")
    @classmethod
    def _known_schemes(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            if not url.startswith(("http://", "https://", "unix:///", f"{NAME_SCHEME}http://")):
                raise ValueError(f"{url!r} is not http://, https://, unix:///path or dns+http://name:port")
            if url.startswith(NAME_SCHEME) and not urlsplit(url.removeprefix(NAME_SCHEME)).hostname:
                raise ValueError(f"{url!r} has no name to look up")
        return urls

    @field_validator("actor_url", "grader_url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        if url and not url.startswith(("http://", "https://")):
            raise ValueError(f"{without_password(url)!r} is not http:// or https://")
        return url.rstrip("/")

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not re.fullmatch(r"https?://[^/\s*]+", origin):
                raise ValueError(f"{origin!r} is not an origin: give scheme and host, as in https://app.example.org")
        return origins

    @field_validator("root_path")
    @classmethod
    def _is_path(cls, path: str) -> str:
        path = path.rstrip("/")
        if path and not is_prefix(path):
            raise ValueError(f"{path!r} is not a path of letters, digits and -._~ after slashes, as in /tools/gadfly")
        return path

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, proxies: tuple[str, ...]) -> tuple[str, ...]:
        for proxy in proxies:
            try:
                ipaddress.ip_network(proxy, strict=False)
            except ValueError:
                raise ValueError(f"{proxy!r} is neither an IP address nor a network such as 10.0.0.0/8") from None
        return proxies

    @field_validator("redactor")
    @classmethod
    def _is_function_or_address(cls, redactor: str) -> str:
        if redactor and not re.fullmatch(r"https?://\S+|[A-Za-z_][\w.]*:[A-Za-z_]\w*", redactor):
            raise ValueError(f"{without_password(redactor)!r} is neither module:function nor an http(s) address")
        return redactor

    @field_validator("retention")
    @classmethod
    def _are_ages(cls, rules: tuple[str, ...]) -> tuple[str, ...]:
        for rule in rules:
            if not re.fullmatch(r"(critique|refine|chat|import)=[1-9]\d{0,4}d", rule):
                raise ValueError(f"{rule!r} is not an origin with an age in days, such as chat=30d")
        return rules

    @field_validator("model_revision")
    @classmethod
    def _is_fixed(cls, revision: str) -> str:
        if revision and not re.fullmatch(r"[0-9a-f]{40}|sha256:[0-9a-f]{64}", revision):
            raise ValueError(
                f"{revision!r} is neither a commit (40 hex digits) nor a hash (sha256: and 64 hex digits); a branch or "
                "a tag can move"
            )
        return revision

    @field_validator("prompts")
    @classmethod
    def _is_there(cls, name: str) -> str:
        if name not in available():
            raise ValueError(f"there is no prompt set {name!r}; the prompt sets are {', '.join(available())}")
        return name

    @field_validator("engine_args", "train_launch_args")
    @classmethod
    def _splits(cls, arguments: str) -> str:
        shlex.split(arguments)  # its ValueError names the fault: an open quotation, an escape
        return arguments

    @field_validator("database_url")
    @classmethod
    def _one_driver(cls, url: SecretStr | None) -> SecretStr | None:
        if url is None:
            return None
        scheme, separator, rest = url.get_secret_value().partition("://")
        if not separator or scheme not in ("postgresql+psycopg", "postgresql", "postgres"):
            raise ValueError("must start with postgresql:// or postgresql+psycopg://")
        return SecretStr(f"postgresql+psycopg://{rest}")

    @model_validator(mode="after")
    def _tokens_fit(self) -> Self:
        if self.max_tokens >= self.engine_max_model_len:
            raise ValueError("max_tokens must be smaller than engine_max_model_len")
        return self

    @model_validator(mode="after")
    def _a_key_for_each_engine(self) -> Self:
        keys = self._engine_keys()
        if len(keys) > 1 and len(keys) != len(self.engine_urls):
            raise ValueError(
                f"engine_key has {len(keys)} keys and engine_urls {len(self.engine_urls)} addresses: set one key for "
                "all, or one for each address"
            )
        return self

    @model_validator(mode="after")
    def _actor_is_whole(self) -> Self:
        if bool(self.actor_url) != bool(self.actor_model):
            raise ValueError("actor_url and actor_model must be set together")
        if self.actor_key is not None and not self.actor_url:
            raise ValueError("actor_key is set, and actor_url is not")
        return self

    @classmethod
    def load(cls, flags: Mapping[str, Any] | None = None) -> Self:
        """The settings in force: flags over environment over defaults.

        Raises:
            BadSettings: a value is invalid, or a variable is not a setting and would silently have no effect. The
                message names each one and the valid values.
        """
        for variable in os.environ:
            name = variable.upper().removeprefix(ENV_PREFIX)
            if name != variable.upper() and name.lower() not in cls.model_fields and name not in _NOT_SETTINGS:
                near = difflib.get_close_matches(name.lower(), cls.model_fields, n=1)
                hint = f": did you mean {ENV_PREFIX}{near[0].upper()}?" if near else "; `gadfly settings` lists them"
                raise BadSettings(f"{variable} is not a setting{hint}")
        try:
            return cls(**{name: value for name, value in (flags or {}).items() if value is not None})
        except ValidationError as error:
            problems = [
                f"{ENV_PREFIX}{'.'.join(map(str, item['loc'])).upper()}: {item['msg'].removeprefix('Value error, ')}"
                if item["loc"]
                else str(item["msg"]).removeprefix("Value error, ")
                for item in error.errors(include_input=False)
            ]
            raise BadSettings("; ".join(problems)) from None

    @property
    def adapters_folder(self) -> Path:
        """The folder of published critics."""
        return self.adapters or self.home / "adapters"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        return is_loopback(self.host)

    def require_addresses(self) -> tuple[str, tuple[str, ...]]:
        """The addresses of the database, with its password, and of the engines.

        Raises:
            BadSettings: one is not set.
        """
        if self.database_url is None or not self.engine_urls:
            raise BadSettings("GADFLY_DATABASE_URL and GADFLY_ENGINE_URLS must be set; `gadfly up` sets both")
        return self.database_url.get_secret_value(), self.engine_urls

    def canary_terms(
        self, *, share: float | None = None, for_s: int | None = None, for_requests: int | None = None
    ) -> CanaryTerms | None:
        """How a promotion begins, with what is given in the place of the settings; None: without a canary."""
        share = self.canary_share if share is None else share
        if not 0 < share < 1:
            return None
        return CanaryTerms(
            share=share,
            for_s=self.canary_s if for_s is None else for_s,
            for_requests=(self.canary_requests if for_requests is None else for_requests) or None,
        )

    def retention_days(self) -> dict[Kind, int]:
        """After how many days rows of an origin are deleted."""
        pairs = (rule.partition("=") for rule in self.retention)
        return {Kind(kind): int(age.removesuffix("d")) for kind, _, age in pairs}

    def _engine_keys(self) -> list[str]:
        return [] if self.engine_key is None else [key.strip() for key in self.engine_key.get_secret_value().split(",")]

    def engine_access(self, url: str) -> Access:
        """What a client needs to use the engine at one of the addresses."""
        keys = self._engine_keys() or [""]
        key = keys[self.engine_urls.index(url)] if len(keys) > 1 and url in self.engine_urls else keys[0]
        return Access(key=key, model=self.engine_model, ca_file=self.ca_file)

    def served_options(self) -> dict[str, Any]:
        """The training options that follow from how the service answers.

        Nothing can be learned from greedy samples, so a served temperature of 0 leaves the training default.
        """
        options: dict[str, Any] = {"max_critique_tokens": self.max_tokens, "max_answer_tokens": self.max_tokens}
        if self.temperature > 0:
            options["temperature"] = self.temperature
        return options

    @property
    def service_url(self) -> str:
        host = "127.0.0.1" if self.host in ("0.0.0.0", "") else "[::1]" if self.host == "::" else self.host
        return self.url or f"http://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{self.port}"

    @property
    def default_model(self) -> Path:
        """The default model's folder: in `cache`, or in this home if an earlier release made it there."""
        own = self.home / "models" / DEFAULT_MODEL
        return own if (own / "config.json").is_file() else self.cache / "models" / DEFAULT_MODEL

    def to_environment(self) -> dict[str, str]:
        """These settings as variables for a child process. They include secrets: never print them."""
        values: dict[str, str] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, SecretStr):
                value = value.get_secret_value()
            elif isinstance(value, tuple):
                value = ",".join(value)
            if value is not None:
                values[f"{ENV_PREFIX}{name.upper()}"] = str(value)
        return values


def is_prefix(path: str) -> bool:
    """Whether a path can be the prefix of all paths of a service: it is safe in a header and in a cookie."""
    return re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", path) is not None and "/.." not in path


def is_loopback(host: str) -> bool:
    """Whether a host name or address refers to this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def without_password(url: str) -> str:
    """A URL with its password masked, before the host and among the parameters."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    place, question, query = rest.partition("?")
    if "@" in place:
        account, _, address = place.rpartition("@")
        user, colon, _ = account.partition(":")
        place = f"{user}{':********' if colon else ''}@{address}"
    pairs = [pair.partition("=") for pair in query.split("&")] if question else []
    query = "&".join(
        f"{key}=********" if "password" in key.casefold() else key + sign + value for key, sign, value in pairs
    )
    return f"{scheme}://{place}{question}{query}"

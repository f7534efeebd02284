"""Where a deployment runs and with what limits: `GADFLY_*` in the environment, each also a command-line flag.

Settings are built once, at the edge (`cli/` or a process's own `__main__`), and passed down. No other module reads the
environment, and importing a file needs no configuration.
"""

import difflib
import ipaddress
import os
import shlex
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self

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

from gadfly.errors import BadSettings
from gadfly.prompts import available

ENV_PREFIX = "GADFLY_"
# Variables with the prefix that are not for `Settings`: the Makefile's, the mark of a run of `gadfly up`, the tests'.
_NOT_SETTINGS = frozenset({"EXTRA", "RUN_MARK", "TEST_ENGINE_URL"})
DEFAULT_MODEL = "smollm2-135m-instruct"


class Device(StrEnum):
    AUTO = "auto"
    CPU = "cpu"
    GPU = "gpu"


class LogFormat(StrEnum):
    CONSOLE = "console"
    JSON = "json"


def _split_commas(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


def _empty_is_unset(value: Any) -> Any:
    return None if value == "" else value


Folder = Annotated[Path, AfterValidator(_absolute)]
Addresses = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_commas)]


class Settings(BaseSettings):
    """Every setting of a deployment. Times in seconds, sizes in bytes unless the name says otherwise."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="ignore", frozen=True, env_ignore_empty=True)

    home: Folder = Field(Path("~/.gadfly"), validate_default=True, description="Folder that keeps all local data.")

    host: str = Field("127.0.0.1", description="Address the service listens on. Anything but loopback needs keys.")
    port: int = Field(8400, ge=1, le=65535, description="Port the service listens on.")
    log_format: LogFormat = Field(LogFormat.CONSOLE, description="Log lines for people (console) or machines (json).")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="Least severe level logged.")

    database_url: Annotated[SecretStr | None, BeforeValidator(_empty_is_unset)] = Field(
        None, description="postgresql+psycopg://... of your own Postgres. Unset: an embedded one under GADFLY_HOME."
    )
    database_pool: int = Field(5, ge=2, le=100, description="Connections each service process may hold.")
    database_timeout_s: float = Field(5.0, gt=0, description="How long a statement may wait for the database.")

    engine_urls: Addresses = Field(
        (), description="Comma-separated engines: http://host:port or unix:///path. Unset: `gadfly up` starts one."
    )
    engine_timeout_s: float = Field(300.0, gt=0, description="How long one generation may take.")
    engine_device: Device = Field(Device.AUTO, description="Where the started engine computes.")
    engine_dtype: str = Field("auto", description="Weights' type in the engine. auto: float32 on CPU, vLLM's on GPU.")
    engine_max_model_len: int = Field(2048, ge=128, description="Longest prompt plus completion, in tokens.")
    engine_max_num_seqs: int = Field(32, ge=1, description="Sequences the engine runs at once.")
    engine_kv_cache_bytes: int = Field(512 * 2**20, ge=2**20, description="KV cache on CPU (a GPU takes a share).")
    engine_max_queued: int = Field(256, ge=1, description="Requests an engine holds before it answers 503.")
    engine_args: str = Field("", description="More vLLM flags for the started engine, as on a command line.")

    model: str = Field(DEFAULT_MODEL, description="Actor and critic's base: the default, a folder, or a hub id.")
    prompts: str = Field("stepwise@1", description="Prompt set and its version.")
    adapter_rank: int = Field(16, ge=1, le=512, description="LoRA rank of every critic of this deployment.")
    adapter_slots: int = Field(4, ge=2, description="Critics the engine can serve in one step.")

    adapters: Annotated[Folder | None, BeforeValidator(_empty_is_unset)] = Field(
        None, description="Folder of the published critics, seen by trainer, service and engine. Unset: in GADFLY_HOME."
    )
    auto_promote: bool = Field(True, description="Serve a new critic as soon as the gate says promote.")
    auto_rollback: bool = Field(True, description="Go back when labelled live traffic shows that a critic is worse.")

    train: bool = Field(True, description="Whether `gadfly up` starts the trainer.")
    train_schedule: str = Field("", description="When to train, as a cron line (0 3 * * *). Empty: only when asked.")
    train_after_labels: int = Field(0, ge=0, description="Train when this many labels are new. 0: only when asked.")
    train_config: Annotated[Folder | None, BeforeValidator(_empty_is_unset)] = Field(
        None, description="JSON file with the training options that differ from the defaults, for every run."
    )
    train_processes: int = Field(1, ge=1, description="Processes (one per GPU) that a run trains with.")
    train_launch_args: str = Field("", description="More of `accelerate launch` for several processes: --use_fsdp ...")
    train_threads: int = Field(0, ge=0, description="CPU threads of a run. 0: all cores but one.")

    max_body_bytes: int = Field(2**20, ge=1024, description="Largest request body.")
    max_text_chars: int = Field(50_000, ge=100, description="Longest question, response, critique or comment.")
    max_samples: int = Field(16, ge=1, description="Largest `n` or `samples` of one request.")
    max_rounds: int = Field(8, ge=1, description="Largest `rounds` of one request.")
    max_tokens: int = Field(512, ge=1, description="Tokens of a critique or refinement unless the request says.")
    temperature: float = Field(0.7, ge=0, le=2, description="Sampling temperature unless the request says.")
    max_in_flight: int = Field(256, ge=1, description="Requests at work at once; more are answered 429.")

    heldout_share: float = Field(0.2, gt=0, lt=1, description="Share of new questions that training never sees.")
    spool_max_bytes: int = Field(2**30, ge=2**12, description="Disk the spool may take while Postgres is away.")
    grade_timeout_s: float = Field(2.0, gt=0, description="How long comparing one answer with its reference may take.")

    url: str = Field("", description="Service that the command line talks to. Unset: http://HOST:PORT.")
    key: Annotated[SecretStr | None, BeforeValidator(_empty_is_unset)] = Field(
        None, description="Key that the command line sends."
    )

    @field_validator("engine_urls")
    @classmethod
    def _known_schemes(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            if not url.startswith(("http://", "https://", "unix:///")):
                raise ValueError(f"{url!r} is not http://, https:// or unix:///path")
        return urls

    @field_validator("prompts")
    @classmethod
    def _is_there(cls, name: str) -> str:
        if name not in available():
            raise ValueError(f"there is no prompt set {name!r}; there are {', '.join(available())}")
        return name

    @field_validator("engine_args", "train_launch_args")
    @classmethod
    def _splits(cls, arguments: str) -> str:
        shlex.split(arguments)  # its ValueError says what is open: a quotation, an escape
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

    @classmethod
    def load(cls, flags: Mapping[str, Any] | None = None) -> Self:
        """The settings in force: flags over environment over defaults.

        Raises:
            BadSettings: names each bad value and what it should be, in one sentence a person can act on; or a variable
                that is no setting, which would otherwise have no effect and say nothing.
        """
        for variable in os.environ:
            name = variable.upper().removeprefix(ENV_PREFIX)
            if name != variable.upper() and name.lower() not in cls.model_fields and name not in _NOT_SETTINGS:
                near = difflib.get_close_matches(name.lower(), cls.model_fields, n=1)
                hint = f": did you mean {ENV_PREFIX}{near[0].upper()}?" if near else "; `gadfly settings` lists them"
                raise BadSettings(f"{variable} is no setting{hint}")
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
        """Where published critics lie."""
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

    @property
    def service_url(self) -> str:
        host = "127.0.0.1" if self.host in ("0.0.0.0", "") else "[::1]" if self.host == "::" else self.host
        return self.url or f"http://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{self.port}"

    def to_environment(self) -> dict[str, str]:
        """These settings as variables for a child process. Secrets are in it: never print it."""
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


def is_loopback(host: str) -> bool:
    """Whether a host's name or address stays on this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def without_password(url: str) -> str:
    """A URL without the password in it: neither before the host nor among the parameters."""
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

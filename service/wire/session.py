"""Shapes of /session."""

from datetime import datetime
from uuid import UUID

from pydantic import ConfigDict, Field

from gadfly.fields import FilledText
from gadfly.records import Scope, Tier
from gadfly.service.wire.common import Wire


class SignInRequest(Wire):
    model_config = ConfigDict(json_schema_extra={"examples": [{"key": "gf_the-secret-of-a-key"}]})

    key: FilledText = Field(max_length=200, description="The API key to sign in with.")


class SessionView(Wire):
    """The caller, as the service knows it by its cookie, by its key, or as a program on the same machine."""

    keyless: bool = Field(description="The service has no keys, and every caller on its machine is an admin.")
    tier: Tier
    scopes: list[Scope] = Field(description="What the key may do; an admin's has all.")
    key_id: UUID | None
    key_name: str | None
    csrf_token: str | None = Field(
        description="With a session: the value of the header X-CSRF-Token that each change needs."
    )
    expires_at: datetime | None = Field(description="When the session ends; null without one.")
    version: str = Field(description="The release of the service.")

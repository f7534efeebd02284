"""The connection of the commands to the service."""

from gadfly.cli.up_state import active_state
from gadfly.client import Client
from gadfly.settings import Settings


def connect(settings: Settings) -> Client:
    """A client of the service at `service_address`, with the key of these settings."""
    return Client.from_settings(settings, url=service_address(settings))


def service_address(settings: Settings) -> str:
    """The configured address, or else the address of the service that `gadfly up` runs on this home folder."""
    if settings.model_fields_set & {"url", "host", "port"}:
        return settings.service_url
    state = active_state(settings.home)
    return settings.service_url if state is None else state.service_url

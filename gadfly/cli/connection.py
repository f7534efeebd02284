"""Which service the commands talk to."""

from gadfly.cli.up_state import active_state
from gadfly.client import Client
from gadfly.settings import Settings


def connect(settings: Settings) -> Client:
    """A client of the service at `service_address`, with the key of these settings."""
    return Client.from_settings(settings, url=service_address(settings))


def service_address(settings: Settings) -> str:
    """The address in the settings; without one, that of the service which `gadfly up` runs on this home folder."""
    if settings.model_fields_set & {"url", "host", "port"}:
        return settings.service_url
    state = active_state(settings.home)
    return settings.service_url if state is None else state.service_url

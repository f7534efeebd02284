"""Pushing critics to other deployments and pulling theirs: the database and the adapter folders of this one."""

import asyncio
from typing import Any

from gadfly import exchange, store
from gadfly.adapters import AdapterFolder
from gadfly.base_model import base_sha256, model_location
from gadfly.cli.storage import opened
from gadfly.errors import BadInput
from gadfly.records import CriticVersion
from gadfly.settings import Settings
from gadfly.store.database import Database
from gadfly.tasks import load_tasks


async def push(settings: Settings, url: str, version: int, target: str) -> CriticVersion:
    """Write a version to a folder or an fsspec address.

    Raises:
        NotFound: there is no such version.
        BadInput: it is the base model, or the address cannot be written.
        BadAdapter: its files are not those that were published.
    """
    async with opened(settings, url) as database, database.session() as session:
        critic = await store.critics.resolve_critic(session, version)
        run = None if critic.run_id is None else await store.runs.read_run(session, critic.run_id)
    if critic.examples:
        raise BadInput(
            f"version {version} is the base model with {critic.examples} answers of this deployment in its prompt, and "
            "these texts are not pushed: export the answers, and make the version anew where they are imported"
        )
    if critic.adapter_path is None:
        raise BadInput(f"version {version} is the base model under the critic's prompt: there is nothing to push")
    gate = run.gate if run is not None else (critic.origin or {}).get("gate")
    path = settings.adapters_folder / critic.adapter_path
    folder = await asyncio.to_thread(
        AdapterFolder.read, path, base_model=critic.base_model, max_rank=settings.adapter_rank
    )
    await asyncio.to_thread(
        exchange.push, folder, target, critic=critic, gate=None if gate is None else _without_evidence(gate)
    )
    return critic


async def pull(settings: Settings, url: str, source: str) -> CriticVersion:
    """Fetch a critic, and make it the candidate of the task that the settings name.

    Raises:
        BadInput: the address holds no critic, or one for another base model, task or prompts.
        BadAdapter: its files are not those that were pushed.
        BadSettings: the task cannot be loaded.
        Conflict: the database belongs to another base model.
    """
    sha256 = await asyncio.to_thread(lambda: base_sha256(model_location(settings)))
    async with opened(settings, url) as database:
        return await take_in(database, settings, source, base_sha256=sha256)


async def take_in(database: Database, settings: Settings, source: str, *, base_sha256: str) -> CriticVersion:
    """Fetch a critic for the base model with this hash, and point `candidate` at it. Raises as `pull`."""
    served = load_tasks(settings).default
    prompt_set = served.prompts.name
    fetched = await asyncio.to_thread(
        exchange.pull,
        source,
        settings.adapters_folder,
        base_model=settings.model,
        base_sha256=base_sha256,
        task=served.name,
        prompt_set=prompt_set,
        max_rank=settings.adapter_rank,
    )
    origin = {"source": source, "run_id": fetched.marker.run_id, "gate": fetched.gate}
    async with database.session() as session:
        await store.critics.ensure_version_zero(session, settings.model, task=served.id)
        critic = await store.critics.insert_pulled_critic(
            session,
            base_model=settings.model,
            task=served.id,
            prompt_set=prompt_set,
            adapter_path=fetched.folder.name,
            adapter_sha256=fetched.marker.sha256,
            origin=origin,
        )
        await store.critics.set_candidate(session, critic.version)
    return critic


def _without_evidence(gate: dict[str, Any]) -> dict[str, Any]:
    """The report without its observations, which only later runs of this deployment read."""
    return gate | {"numbers": {name: value for name, value in gate["numbers"].items() if name != "evidence"}}

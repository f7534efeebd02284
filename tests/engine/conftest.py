"""Shared fixtures: real engine processes with a tiny random model and two random adapters."""

from collections.abc import Iterator

import pytest

from tests.support.engines import RunningEngine, start_engine
from tests.support.tiny_models import Adapted, random_adapter, random_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    home = tmp_path_factory.mktemp("tiny")
    model = random_model(home / "model")
    adapters = {
        name: random_adapter(home / name, model=model, seed=seed) for seed, name in enumerate(("one", "two"), start=1)
    }
    return Adapted(model, adapters)


@pytest.fixture(scope="session")
def tiny_engine(tiny: Adapted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    """The engine as in a deployment, with both adapters loaded and at most six concurrent sequences."""
    with start_engine(
        tiny.model,
        home=tmp_path_factory.mktemp("engine"),
        environ={"GADFLY_ENGINE_MAX_NUM_SEQS": "6", "GADFLY_ADAPTER_SLOTS": "2"},
    ) as engine:
        for name, folder in tiny.adapters.items():
            engine.load_adapter(name, folder)
        yield engine


@pytest.fixture(scope="module")
def bare_engine(tiny: Adapted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    """vLLM without Gadfly's plugin, with both adapters loaded. Only the last test of a file may crash it."""
    with start_engine(
        tiny.model,
        home=tmp_path_factory.mktemp("bare"),
        environ={"GADFLY_ADAPTER_SLOTS": "2"},
        without_plugins=True,
    ) as engine:
        for name, folder in tiny.adapters.items():
            engine.load_adapter(name, folder)
        yield engine

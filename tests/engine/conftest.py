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


@pytest.fixture(scope="session")
def bare_engines() -> Iterator[list[RunningEngine]]:
    engines: list[RunningEngine] = []
    yield engines
    for engine in engines:
        engine.kill()


@pytest.fixture
def bare_engine(
    bare_engines: list[RunningEngine], tiny: Adapted, tmp_path_factory: pytest.TempPathFactory
) -> RunningEngine:
    """vLLM without Gadfly's plugin, with both adapters loaded. A test may crash it; the next test gets a new one."""
    if not bare_engines or bare_engines[-1].process.poll() is not None:
        engine = start_engine(
            tiny.model,
            home=tmp_path_factory.mktemp("bare"),
            environ={"GADFLY_ADAPTER_SLOTS": "2"},
            without_plugins=True,
        )
        bare_engines.append(engine)
        for name, folder in tiny.adapters.items():
            engine.load_adapter(name, folder)
    return bare_engines[-1]

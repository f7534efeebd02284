from pathlib import Path

import pytest

from tests.support.tiny_models import random_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Llama of random weights."""
    return random_model(tmp_path_factory.mktemp("model"))

"""vLLM without Gadfly's plugin: the faults that the plugin is for.

If one of these tests fails because a release of vLLM has the fault no more, remove that part of the plugin.
"""

import httpx

from tests.engine.test_lora_batch import TOLERANCE, answer_together, largest_error
from tests.engine.test_seeds import ask
from tests.support.engines import RunningEngine
from tests.support.tiny_models import Adapted


async def test_the_comparison_fails_without_the_plugin(tiny: Adapted, bare_engine: RunningEngine) -> None:
    """If this test fails because vLLM's own operation is correct, remove `engine/cpu_lora.py`."""
    rows, _ = await answer_together(bare_engine)

    errors = largest_error(tiny, rows)
    assert errors["base"] > 0.1, errors
    assert max(errors["one"], errors["two"]) < TOLERANCE, errors


def test_without_the_plugin_the_engine_crashes(bare_engine: RunningEngine) -> None:
    """If this test fails because vLLM answers, remove `engine/cpu_seeds.py`."""
    assert ask(bare_engine, seed=5).status_code == httpx.codes.INTERNAL_SERVER_ERROR
    bare_engine.process.wait(30)
    assert "CPU Generator does not use offset" in bare_engine.log_tail(200)

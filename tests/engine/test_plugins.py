"""The entry point of the vLLM plugin."""

from importlib.metadata import entry_points

from gadfly.engine.command import PLUGIN
from gadfly.engine.plugins import register


def test_vllm_finds_the_plugin() -> None:
    [found] = entry_points(group="vllm.general_plugins", name=PLUGIN)
    assert found.load() is register

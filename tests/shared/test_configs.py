"""The packaged configs can be read, and have the values of the paper that they claim."""

from pathlib import Path

import pytest

from gadfly.training import TrainConfig

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.json"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_the_papers(path: Path) -> None:
    config = TrainConfig.effective(path, {})
    assert (config.steps_stage_1, config.steps_stage_2) == (500, 500)
    assert config.prompts_per_step * config.samples_per_prompt == 256
    assert (config.kl_stage_1, config.kl_stage_2, config.discrimination_weight) == (0.01, 0.01, 0.2)
    assert (config.clip, config.inner_epochs, config.minibatches) == (0.2, 2, 4)
    assert (config.max_critique_tokens, config.max_answer_tokens, config.pool_samples) == (1536, 1024, 10)
    # Every train question fits, and so do the held-out ones of the test split.
    assert config.max_questions == config.pool_questions + config.evaluation_items


def test_there_is_one_for_each_model_and_task() -> None:
    assert {path.stem for path in CONFIGS} == {
        f"qwen2.5-{size}-{task}" for size in ("3b", "7b") for task in ("gsm8k", "math")
    }

"""The options of a run, and the order of defaults, file and request."""

from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from gadfly.errors import BadInput
from gadfly.planning import differences
from gadfly.settings import Settings
from gadfly.training import RunStatus, TrainConfig, read_config_file

BAD = [  # values, field, a part of the message, why this row exists
    ({"learning_rate": 0}, "config.learning_rate", "greater than 0", "out of bounds"),
    ({"learning_rat": 1e-4}, "config.learning_rat", "did you mean learning_rate", "a typo would have no effect"),
    ({"learning_rate": float("inf")}, "config.learning_rate", "finite", "JSON could not hold it"),
    ({"clip": float("nan")}, "config.clip", "finite", "nor this"),
    ({"learning_rate": "Infinity"}, "config.learning_rate", "finite", "nor this, as a text"),
    ({"alarms": {"kl": 0}}, "config.alarms.kl", "greater than 0", "nested"),
    ({"alarms": {"kll": 1}}, "config.alarms.kll", "did you mean kl", "a nested typo"),
    ({"profile": "mine"}, "config.profile", "'paper' or 'released'", "says the choices"),
    ({"samples_per_prompt": 1}, "config.samples_per_prompt", "greater than or equal to 2", "no leave-one-out mean"),
    ({"validation_share": 0.5}, "config.validation_share", "less than 0.5", "most is learned from"),
    ({"steps_stage_1": 0, "steps_stage_2": 0}, "config", "cannot both be 0", "nothing to do"),
    ({"cycles": 1000, "steps_stage_1": 1000}, "config", "more than 1,000,000", "a product out of bounds"),
    ({"minibatches": 5, "prompts_per_step": 4}, "config", "a group is not split", "two fields together"),
]


@pytest.mark.parametrize(("values", "field", "says", "why"), BAD)
def test_the_first_bad_field_is_named(values: dict[str, Any], field: str, says: str, why: str) -> None:
    with pytest.raises(BadInput, match=says) as found:
        TrainConfig.read(values)
    assert found.value.field == field, why
    assert str(found.value).startswith(f"{field}: ")


def test_what_is_not_said_is_the_default_and_what_was_stored_reads_the_same() -> None:
    assert TrainConfig.read({}) == TrainConfig()
    config = TrainConfig.read({"cycles": 2, "steps_stage_1": 3, "steps_stage_2": 4, "alarms": {"kl": None}})
    assert config.steps == 14
    assert config.alarms.kl is None
    assert config.alarms.no_gain == TrainConfig().alarms.no_gain
    assert TrainConfig.read(config.model_dump(mode="json")) == config


EFFECTIVE = [  # file, request, the result, why this row exists
    ('{"seed": 1}', {}, {"seed": 1}, "the file over the default"),
    ('{"seed": 1}', {"seed": 2}, {"seed": 2}, "the request over the file"),
    ('{"seed": 1}', {"cycles": 2}, {"seed": 1, "cycles": 2}, "both, where they differ"),
    (
        '{"alarms": {"kl": 3, "no_gain": 9}}',
        {"alarms": {"kl": 4}},
        {"alarms": {"kl": 4, "no_gain": 9}},
        "a group is joined and not replaced",
    ),
    ('{"prompts_per_step": 64}', {"minibatches": 32}, {"prompts_per_step": 64, "minibatches": 32}, "checked together"),
]


@pytest.mark.parametrize(("content", "changes", "expected", "why"), EFFECTIVE)
def test_the_request_counts_over_the_file_and_the_file_over_the_default(
    tmp_path: Path, content: str, changes: dict[str, Any], expected: dict[str, Any], why: str
) -> None:
    file = tmp_path / "train.json"
    file.write_text(content)
    assert TrainConfig.effective(file, changes) == TrainConfig.read(expected), why


def test_without_a_file_the_request_counts_alone() -> None:
    assert TrainConfig.effective(None, {"seed": 3}) == TrainConfig(seed=3)
    assert read_config_file(None) == {}


def test_a_run_without_a_seed_gets_its_own() -> None:
    one, two = (TrainConfig().seeded(UUID(int=number)) for number in (2**100 + 7, 8))
    assert (one.fixed_seed, two.fixed_seed) == (7, 8)
    assert TrainConfig(seed=3).seeded(UUID(int=8)).seed == 3
    assert one.seeded(UUID(int=8)) == one, "a run that reproduces another keeps its seed"


def test_a_critic_learns_as_it_answers_unless_somebody_says_otherwise(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, temperature=0.3, max_tokens=100)
    served = settings.served_options()
    config = TrainConfig.effective(None, {}, served=served)
    assert (config.temperature, config.max_critique_tokens, config.max_answer_tokens) == (0.3, 100, 100)
    assert differences(config, settings) == []
    file = tmp_path / "train.json"
    file.write_text('{"max_answer_tokens": 50}')
    config = TrainConfig.effective(file, {"temperature": 1.0}, served=served)
    assert (config.temperature, config.max_critique_tokens, config.max_answer_tokens) == (1.0, 100, 50)
    assert [warning.partition(":")[0] for warning in differences(config, settings)] == [
        "max_answer_tokens is 50, and the service answers with 100",
        "temperature is 1, and the service answers with 0.3",
    ]
    greedy = Settings(home=tmp_path, temperature=0.0)
    config = TrainConfig.effective(None, {}, served=greedy.served_options())
    assert config.temperature == TrainConfig().temperature
    assert "temperature is 0.7, and the service answers with 0" in differences(config, greedy)[0]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read: .*No such file"),
        ("{", "cannot be read"),
        ("[1]", "is not a JSON object"),
        ('{"sed": 1}', r"cannot be used: config\.sed"),
        ('{"learning_rate": NaN}', r"cannot be used: config\.learning_rate"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, content: str | None, says: str) -> None:
    file = tmp_path / "train.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(BadInput, match=f"{file} {says}") as found:
        TrainConfig.effective(file, {"seed": 1})
    assert found.value.field is None, "the caller cannot mend it in the request"


def test_which_statuses_are_an_end() -> None:
    assert [status for status in RunStatus if status.is_over] == ["succeeded", "failed", "cancelled"]

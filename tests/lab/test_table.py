"""The rows' budgets and configs, and the means and intervals of the table."""

import re
from typing import Any

import pytest

from gadfly.lab import __main__ as lab
from gadfly.lab.report import BEGIN, END, Mean, put_into, rollouts_to, samples_table, table, under_attack
from gadfly.lab.rows import BASE, ROWS, Method, config, config_of_update, row
from gadfly.lab.runs import code
from gadfly.training import Baseline, Helpfulness, RewardProfile


def test_every_row_samples_the_same_number_of_critiques() -> None:
    for each in ROWS:
        if each.method is Method.LEARN and each.name not in ("no-stage-1", "no-stage-2", "iterated"):
            assert config(each, BASE, seed=1).steps == BASE.steps, each.name


def test_rows_differ_from_the_method_only_in_the_stated_options() -> None:
    whole = config(row("critique-rl"), BASE, seed=3)
    expected: dict[str, dict[str, Any]] = {
        "ctrl": {
            "discrimination_weight": 0.0, "baseline": Baseline.GROUP_NORM, "steps_stage_1": 0, "steps_stage_2": 40
        },
        "no-dis": {"discrimination_weight": 0.0, "kl_stage_2": 0.0},
        "correct": {"helpfulness": Helpfulness.CORRECT},
        "released": {"profile": RewardProfile.RELEASED},
        "single-both": {"steps_stage_1": 0, "steps_stage_2": 40},
        "alike": {"uncertain_first": False},
        "update-at-1": {},
    }  # fmt: skip
    for name, changes in expected.items():
        found, base = config(row(name), BASE, seed=3).model_dump(), whole.model_dump()
        assert {key: value for key, value in found.items() if value != base[key]} == changes, name


def test_a_row_may_update_at_another_temperature_than_it_samples_at() -> None:
    of = row("update-at-1")
    sampling = config(of, BASE, seed=3)
    assert (sampling.temperature, config_of_update(of, sampling).temperature) == (BASE.temperature, 1.0)
    assert BASE.temperature != 1.0
    assert config_of_update(row("critique-rl"), sampling) == sampling


def test_an_interval_uses_students_t() -> None:
    # 0.5, 0.6, 0.7: deviation 0.1, and 4.303 for two degrees of freedom.
    found = Mean.of([0.5, 0.6, 0.7])
    assert found.value == pytest.approx(0.6)
    assert found.half == pytest.approx(4.303 * 0.1 / 3**0.5)
    assert found.percent() == "60.0 ± 24.8"
    assert Mean.of([0.25]).percent() == "25.0", "a single seed has no interval"


def result(name: str, **rates: float) -> dict[str, Any]:
    numbers = {key: {"value": value} for key, value in rates.items()}
    return {"row": name, "seed": 0, "rollouts": 10_240, "seconds": 12.0, "last": {"in_domain": numbers}}


def discrimination(found: dict[str, Any]) -> float:
    return float(found["last"]["in_domain"]["discrimination"]["value"])


def test_rows_without_results_are_not_in_the_table() -> None:
    lines = table([result("ctrl", discrimination=0.5)], [("Acc@Dis", discrimination)]).splitlines()
    assert len(lines) == 3
    assert lines[2] == "| indirect reward, r_refine, group normalised (CTRL) | 1 | 50.0 | 10,240 | 12 | - |"


def test_only_a_trained_row_has_an_interval() -> None:
    results = [result(name, discrimination=0.5) | {"seed": seed} for name in ("sft", "critique-rl") for seed in (0, 1)]
    assert table(results, [("Acc@Dis", discrimination)]).splitlines()[2:] == [
        "| SFT critic | - | 50.0 | 10,240 | 12 | - |",
        "| Critique-RL | 2 | 50.0 ± 0.0 | 10,240 | 12 | - |",
    ]


def test_the_table_says_which_code_a_row_was_measured_on() -> None:
    results = [result("ctrl", discrimination=0.5) | {"seed": seed, "code": f"abc{seed}"} for seed in (0, 1)]
    assert table(results, [("Acc@Dis", discrimination)]).splitlines()[2].endswith("| 12 | abc0, abc1 |")
    assert re.fullmatch(r"-|[0-9a-f]{7,}\+?", code())


def test_the_table_shows_wrong_answers_under_attack_where_they_were_measured() -> None:
    columns = [("attacked", under_attack)]
    old, new = result("sft"), result("critique-rl") | {"attacks": {"attacked": {"value": 0.25}}}
    lines = table([old, new], columns).splitlines()
    assert lines[2:] == ["| SFT critic | - | - | 10,240 | 12 | - |", "| Critique-RL | 1 | 25.0 | 10,240 | 12 | - |"]


def quick(*, stage_1: float, refined: float, dis: float) -> list[dict[str, Any]]:
    return [
        result("sft", discrimination_right=0.6, discrimination_wrong=0.5),
        result(
            "no-stage-2",
            discrimination_right=stage_1, discrimination_wrong=stage_1, discrimination=0.8, accuracy_refined=0.7,
        ),
        result("critique-rl", discrimination=dis, accuracy_refined=refined),
    ]  # fmt: skip


def test_a_quick_run_names_each_wrong_sign() -> None:
    assert lab.wrong_signs(quick(stage_1=0.8, refined=0.75, dis=0.79)) == []
    assert len(lab.wrong_signs(quick(stage_1=0.55, refined=0.75, dis=0.79))) == 1, "one class only"
    full = quick(stage_1=0.98, refined=0.75, dis=0.79)
    full[0]["last"]["in_domain"]["discrimination_right"]["value"] = 1.0
    assert lab.wrong_signs(full) == [], "a class without room for a gain only must not lose"
    full[1]["last"]["in_domain"]["discrimination_right"]["value"] = 0.96
    assert "discrimination_right: 1.000 -> 0.960" in lab.wrong_signs(full)[0]
    assert "does not lift Acc@Refine" in lab.wrong_signs(quick(stage_1=0.8, refined=0.7, dis=0.79))[0]
    assert "loses Acc@Dis" in lab.wrong_signs(quick(stage_1=0.8, refined=0.75, dis=0.7))[0]


def point(step: int, value: float) -> dict[str, Any]:
    return {"step": step, "metrics": {"discrimination_balanced": {"value": value}}}


def test_a_target_is_reached_if_the_next_point_reaches_it_too() -> None:
    curve = [point(0, 0.5), point(5, 0.92), point(10, 0.85), point(15, 0.9), point(20, 0.95)]
    assert rollouts_to({"curve": curve}, 0.9, critiques_per_step=64) == 15 * 64
    assert rollouts_to({"curve": curve}, 0.95, critiques_per_step=64) == 20 * 64, "the last point needs no successor"
    assert rollouts_to({"curve": curve}, 0.96, critiques_per_step=64) is None


def test_results_replace_the_text_between_the_markers() -> None:
    page = f"# Results\n\n{BEGIN}\n\nold\n\n{END}\n\nafter\n"
    assert put_into(page, "new") == f"# Results\n\n{BEGIN}\n\nnew\n\n{END}\n\nafter\n"
    with pytest.raises(ValueError, match="no markers"):
        put_into("# Results\n", "new")


def test_samples_are_means_over_seeds() -> None:
    def measured(majority: float) -> dict[str, Any]:
        return {"k": 4, "mean_tokens": 100.0, "majority": {"value": majority}, "pass_unbiased": {"value": 0.9}}

    results = [{"row": "sft", "seed": seed, "samples": [measured(0.6 + 0.1 * seed)]} for seed in (0, 1, 2)]
    assert samples_table(results).splitlines()[2] == "| SFT critic | 4 | 100 | 70.0 ± 24.8 | 90.0 ± 0.0 |"

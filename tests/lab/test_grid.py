"""World options have the stated chances in simulated rewrites, and intervals contain the truth as often as they say."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from gadfly.engine_client import Engine
from gadfly.engine_pool import EnginePool
from gadfly.lab import world
from gadfly.lab.__main__ import MODEL
from gadfly.lab.arena import Sizes, asked
from gadfly.lab.grid import CELLS, GRID_BASE, GRID_ROWS, GridResult, grid_table, interval, results_of, run_grid, units
from gadfly.lab.rewriting import SimulatedActor, WorldOptions, with_share
from gadfly.lab.rows import config
from gadfly.lab.study import Study
from gadfly.lab.world import PERFECT, Care, Equation, Judgement, LabSplit
from gadfly.rates import proportion

POOL = EnginePool([Engine("http://no-engine", timeout_s=1.0)])  # a rewrite asks no engine
PROBLEMS = world.problems(LabSplit.IN_DOMAIN, 1500, seed=5)


def wrong_answer(rng: random.Random, problem: world.WordProblem) -> list[Equation]:
    while True:
        answer = world.slip(rng, problem, share=0.6)
        if answer[-1].result != problem.answer:
            return answer


def rewrites(options: WorldOptions, *, is_right: bool, care: Care = PERFECT, is_masked: bool = False) -> list[str]:
    """The rewrites of right or wrong answers that the critic of this care called Wrong."""
    actor = SimulatedActor(POOL, options=options, seed="a", is_masked=is_masked)
    rng = random.Random(1)
    texts = []
    for problem in PROBLEMS:
        answer = world.solve(problem) if is_right else wrong_answer(rng, problem)
        judgements = world.judge(rng, answer, care)
        if is_right:
            judgements = [Judgement(each.step, each.again, said=False) for each in judgements]
        texts.append(actor.rewritten(problem.text, world.solution(answer), world.critique(judgements)))
    return texts


def is_chance(texts: list[str], chance: float) -> bool:
    """Whether the share of right texts agrees with a chance, at four standard errors."""
    hits = sum(text.endswith(f"The answer is {problem.answer}.") for text, problem in zip(texts, PROBLEMS, strict=True))
    found = proportion(hits, len(texts), confidence=0.9999)
    assert found is not None
    return found.low <= chance <= found.high


@pytest.mark.parametrize("q", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("compliance", [1.0, 0.6])
def test_a_wrong_answer_that_is_called_wrong_is_mended_with_the_stated_chance(q: float, compliance: float) -> None:
    options = WorldOptions(q=q, right=0.5, compliance=compliance)
    texts = rewrites(options, is_right=False)
    assert is_chance(texts, compliance * q)
    assert not is_chance(texts, compliance * q + 0.08)


@pytest.mark.parametrize("q", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("harm", [0.0, 0.5])
def test_a_false_alarm_costs_what_is_stated(q: float, harm: float) -> None:
    texts = rewrites(WorldOptions(q=q, right=0.5, harm=harm), is_right=True)
    assert is_chance(texts, (1 - harm) * q)
    complied = rewrites(WorldOptions(q=q, right=0.5, harm=harm, compliance=0.6), is_right=True)
    assert is_chance(complied, 0.4 + 0.6 * (1 - harm) * q)


def test_wrong_or_masked_numbers_leave_the_actor_its_own_chance() -> None:
    options = WorldOptions(q=0.8, right=0.5)
    assert is_chance(rewrites(options, is_right=False, is_masked=True), 0.2)
    always_wrong = Care(overlooks=0, overlooks_far=0, suspects=0, miscounts=1.0)
    found = rewrites(options, is_right=True, care=always_wrong)
    assert is_chance(found, options.masked * 0.2)


def test_correct_and_a_missing_verdict_keep_the_answer() -> None:
    actor = SimulatedActor(POOL, options=WorldOptions(q=0.5, right=0.5, harm=0.5), seed="a")
    for problem in PROBLEMS[:50]:
        answer = world.solution(wrong_answer(random.Random(2), problem))
        for verdict in ("Correctness of the final answer: Correct", "Correctness of the"):
            assert actor.rewritten(problem.text, answer, verdict) == answer


def test_questions_and_equations_are_read_back() -> None:
    for split in LabSplit:
        for problem in world.problems(split, 200, seed=3):
            assert world.read_problem(problem.text) == problem
    assert world.read_equation("3 * 12 = 35. So") == Equation(3, "*", 12, 35)
    with pytest.raises(ValueError, match="no question"):
        world.read_problem("What is love?")


@pytest.mark.parametrize("q", [0.1, 1.1])
def test_an_impossible_q_is_refused(q: float) -> None:
    with pytest.raises(ValueError, match="q must be"):
        WorldOptions(q=q, right=0.5)


@pytest.mark.parametrize(("miscounts", "flips"), [(0.3, 0.1), (0.1, 0.3)])
def test_faults_in_numbers_and_in_verdicts_are_independent(miscounts: float, flips: float) -> None:
    rng = random.Random(4)
    care = Care(overlooks=0, overlooks_far=0, suspects=0, miscounts=miscounts, flips=flips)
    found = [
        (each.again.result != each.step.true_result, each.is_correct is not (each.step.result == each.step.true_result))
        for problem in PROBLEMS
        for each in world.judge(rng, world.slip(rng, problem, share=0.4), care)
    ]
    for chance, hits in (
        (miscounts, sum(number for number, _ in found)),
        (flips, sum(verdict for _, verdict in found)),
        (miscounts * flips, sum(number and verdict for number, verdict in found)),
    ):
        rate = proportion(hits, len(found), confidence=0.9999)
        assert rate is not None
        assert rate.low <= chance <= rate.high


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_answers_have_the_stated_share(share: float) -> None:
    answers = [replace(asked(each), is_right=place % 3 > 0) for place, each in enumerate(PROBLEMS[:300])]
    chosen = with_share(answers, share, seed="a")
    assert abs(sum(each.is_right for each in chosen) / len(chosen) - share) < 0.01
    assert len(chosen) >= 100
    assert chosen == [each for each in answers if each in chosen], "in their order"
    with pytest.raises(ValueError, match="one class is empty"):
        with_share([each for each in answers if each.is_right], share, seed="a")


def test_the_cells_are_those_of_the_plan() -> None:
    assert {(each.q, each.right) for each in CELLS.values()} == {
        (q, r) for q in (0.2, 0.5, 0.8) for r in (0.2, 0.5, 0.8)
    }
    assert [cell for cell, each in CELLS.items() if each.harm == 0] == [1, 6, 8]
    assert [cell for cell, each in CELLS.items() if each.compliance < 1] == [1, 5, 9]


def test_all_trained_rows_have_the_same_rollouts() -> None:
    assert {config(each, GRID_BASE, seed=0).steps for each in GRID_ROWS if each.is_trained} == {24}


def a_study(folder: Path) -> Study:
    return Study(folder, MODEL, GRID_BASE, Sizes())


def test_every_option_is_part_of_an_identity_and_verdict_rows_are_trained_once_for_a_share(tmp_path: Path) -> None:
    study = a_study(tmp_path)
    both = units(study, list(CELLS), ["single-both"], [0])
    assert len({each.training for each in both}) == 9
    alone = units(study, list(CELLS), ["dis-only"], [0])
    assert sorted(each.cells for each in alone) == [(1, 4, 7), (2, 5, 8), (3, 6, 9)]
    assert len({identity for each in alone for identity in each.identities}) == 9, "results differ by cell"
    assert {each.training for each in both}.isdisjoint(
        each.training for each in units(study, list(CELLS), ["single-both"], [1])
    )
    other = replace(study, sizes=Sizes(test=100))
    assert {each.training for each in both}.isdisjoint(
        each.training for each in units(other, list(CELLS), ["single-both"], [0])
    )


def a_result(identity: str, name: str, verdicts: list[bool]) -> GridResult:
    right = [True, True, False, False]
    return GridResult(
        identity=identity, model="m", cell=1, options={}, row=name, seed=0, rollouts=64, code="-", was_right=right,
        verdict_right=verdicts, refined_right=right, masked_right=right, leaks=[False, False, True, False],
    )  # fmt: skip


def test_a_killed_grid_goes_on_and_makes_no_result_twice(tmp_path: Path) -> None:
    wanted = units(a_study(tmp_path / "study"), [1], ["dis-only"], [0])
    lines = results_of(tmp_path)
    lines.append(a_result(wanted[0].identities[0], "dis-only", [True] * 4))
    with (tmp_path / "results.jsonl").open("ab") as file:
        file.write(b'{"identity": "cut o')
    assert list(run_grid(tmp_path, wanted, workers=1)) == []
    assert len(list(lines.read())) == 1
    assert not (tmp_path / "study").exists(), "nothing was started"


def test_the_table_has_a_line_for_each_row_and_differences_from_one_stage_with_both() -> None:
    results = [
        a_result("a", "dis-only", [True, True, True, False]), a_result("b", "single-both", [True, False, True, False])
    ]  # fmt: skip
    plain = grid_table(results).splitlines()
    assert plain[2].startswith("| m | 1 | r_dis alone | 1 | 75.0 ± ")
    assert plain[2].endswith("| 50.0 ± 98.0 |")
    assert len(plain) == 4
    [line] = grid_table(results, differences=True).splitlines()[2:]
    assert line.startswith("| m | 1 | r_dis alone | 1 | 25.0 ± ")


@pytest.mark.parametrize("seeds", [2, 5])
def test_an_interval_contains_the_truth_as_often_as_it_says(seeds: int) -> None:
    rng = random.Random(6)
    strata = [place < 20 for place in range(60)]
    hits = 0
    for _ in range(400):
        of_seed = [rng.gauss(0, 0.1) for _ in range(seeds)]
        of_question = [rng.gauss(0, 0.3) for _ in strata]
        values = [[0.5 + a + b + rng.gauss(0, 0.2) for b in of_question] for a in of_seed]
        found = interval(values, strata)
        hits += abs(found.value - 0.5) <= found.half
    assert hits / 400 > 0.93

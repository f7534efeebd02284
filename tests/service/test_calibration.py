"""The calibrated confidence in answers, and the calibration of a critic, on a real engine and a real database."""

import httpx
import pytest
from sqlalchemy import text

from gadfly import store
from gadfly.calibration import Bin, Calibration, CalibrationReport, ClassCounts, Reliability
from gadfly.store.database import Database
from tests.service.conftest import RIGHT, WRONG

CALIBRATION = Calibration(slope=0.25, intercept=-0.5, traffic=ClassCounts(right=90, wrong=10))
PART = Reliability(
    ece=0.25,
    low=0.125,
    high=0.375,
    bins=(Bin(low=0.9, high=1.0, items=80, traffic_share=1.0, mean_p=0.95, right=0.7),),
)
REPORT = CalibrationReport(items=80, questions=40, folds=10, share_low=0.83, share_high=0.94, before=PART, after=PART)


async def calibrate(database: Database) -> None:
    """Give version 0 a calibration, as a run gives its version one; the service reads it within a second."""
    async with database.session() as session:
        await store.calibrations.insert_calibration(session, 0, CALIBRATION, REPORT)


async def test_a_critic_without_a_calibration_says_so(client: httpx.AsyncClient) -> None:
    result = (await client.post("/critique", json=WRONG)).json()
    assert result["confidence"] is not None
    assert (result["calibrated_confidence"], result["critiques"][0]["calibrated_confidence"]) == (None, None)
    refined = (await client.post("/refine", json=WRONG)).json()
    assert (refined["calibrated_confidence"], refined["confidence"]) == (
        None,
        refined["rounds"][-1]["critique"]["confidence"],
    )
    assert (await client.get("/critics/0")).json()["calibration"] is None


async def test_answers_carry_both_confidences(client: httpx.AsyncClient, database: Database) -> None:
    before = (await client.post("/critique", json=WRONG)).json()
    await calibrate(database)
    await client.get("/critics")  # reads the pointers now
    for body in (RIGHT, WRONG):
        result = (await client.post("/critique", json={**body, "n": 2, "temperature": 0.5, "seed": 1})).json()
        for critique in result["critiques"]:
            words = critique["probabilities"]
            p_right = CALIBRATION.p_right(words["correct"], words["incorrect"])
            assert p_right is not None
            expected = p_right if critique["verdict"] == "correct" else 1 - p_right
            assert critique["calibrated_confidence"] == pytest.approx(expected)
        assert result["calibrated_confidence"] == result["critiques"][0]["calibrated_confidence"]
        assert result["calibrated_confidence"] != pytest.approx(result["confidence"], abs=0.01)

    refined = (await client.post("/refine", json={**WRONG, "critique_id": result["critiques"][0]["id"]})).json()
    assert refined["calibrated_confidence"] == pytest.approx(result["calibrated_confidence"]), (
        "it stays with a critique"
    )
    supplied = (
        await client.post("/refine", json={**WRONG, "critique": "Correctness of the final answer: wrong"})
    ).json()
    assert (supplied["confidence"], supplied["calibrated_confidence"]) == (None, None)

    async with database.session() as session:  # answers stay as they were, also when the calibration changes
        await session.execute(text("DELETE FROM critic_calibrations"))
    kept = (await client.get(f"/interactions/{result['id']}")).json()["result"]
    assert kept == result
    old = (await client.get(f"/interactions/{before['id']}")).json()["result"]
    assert old["calibrated_confidence"] is None, "a critique from before has none"


async def test_a_critic_shows_how_well_its_calibration_does(client: httpx.AsyncClient, database: Database) -> None:
    await calibrate(database)
    shown = (await client.get("/critics/0")).json()["calibration"]
    assert (shown["slope"], shown["intercept"], shown["items"], shown["questions"]) == (0.25, -0.5, 80, 40)
    assert shown["class_shares"] == {"right": 90, "wrong": 10, "share": 90.5 / 101, "low": 0.83, "high": 0.94}
    assert (shown["before"]["ece"], shown["after"]["low"], shown["after"]["high"]) == (0.25, 0.125, 0.375)
    assert shown["after"]["bins"] == [
        {"low": 0.9, "high": 1.0, "items": 80, "traffic_share": 1.0, "mean_p": 0.95, "right": 0.7}
    ]


async def test_a_version_keeps_its_first_calibration(database: Database) -> None:
    async with database.session() as session:
        await store.critics.ensure_version_zero(session, "tiny")
    await calibrate(database)
    async with database.session() as session:
        other = Calibration(slope=9.0, intercept=9.0, traffic=ClassCounts(right=1, wrong=1))
        await store.calibrations.insert_calibration(session, 0, other, REPORT)
        assert await store.calibrations.list_calibrations(session) == {0: CALIBRATION}
        stored = await store.calibrations.read_calibration(session, 0)
    assert stored is not None
    assert (stored.calibration, stored.report) == (CALIBRATION, REPORT)

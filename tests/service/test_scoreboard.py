"""What a critic says about itself, on a real engine and a real database."""

import httpx

from tests.service.conftest import RIGHT, WRONG


async def test_the_first_critic_says_that_it_is_untrained(client: httpx.AsyncClient) -> None:
    judged = (await client.post("/critique", json=WRONG)).json()
    assert judged["critic"]["status"] == "untrained"
    assert (await client.post("/refine", json=WRONG)).json()["critic"]["status"] == "untrained"
    [zero] = (await client.get("/critics")).json()
    assert zero["status"] == "untrained"
    assert (await client.get("/critics/0")).json()["scoreboard"] is None, "no answer has a label"


async def test_labels_give_a_scoreboard(client: httpx.AsyncClient) -> None:
    verdicts = {}
    for body, correct in ((RIGHT, True), (WRONG, False)):
        judged = (await client.post("/critique", json=body)).json()
        verdicts[correct] = judged["verdict"]
        await client.post("/feedback", json={"interaction_id": judged["id"], "correct": correct})
    board = (await client.get("/critics/0")).json()["scoreboard"]
    assert board["answers"] == 2
    assert board["right"]["value"] == (verdicts[True] == "correct")
    assert board["wrong"]["value"] == (verdicts[False] == "incorrect")
    assert board["right"]["answers"] == 1
    assert board["right"]["low"] < board["right"]["high"]
    assert board["auroc"]["value"] in (0, 0.5, 1)
    assert (board["ece"], board["calibrated_ece"], board["threshold"]) == (None, None, None), "two answers are too few"

"""Both clients on a real service with a real engine."""

import asyncio
from pathlib import Path

import pytest

from gadfly.client import AsyncClient, Client, ServiceError, TextDelta
from gadfly.grading import Grade
from gadfly.records import Kind
from gadfly.service.wire.answers import CritiqueResult, RefineResult
from gadfly.settings import Settings
from tests.service.conftest import QUESTION, RIGHT, WRONG, make_settings
from tests.support.services import serving


@pytest.fixture
def settings(tmp_path: Path, database_url: str, engine_url: str) -> Settings:
    return make_settings(tmp_path, database_url, engine_url)


async def test_a_program_judges_rewrites_labels_and_reads_back(settings: Settings) -> None:
    async with serving(settings) as service:
        await asyncio.to_thread(_use, str(service.base_url))


def _use(url: str) -> None:
    with Client(url) as client:
        judged = client.critique(WRONG["question"], WRONG["response"], request_id="first", reference="7")
        again = client.critique(WRONG["question"], WRONG["response"], request_id="first", reference="7")
        assert again == judged, "the same request id is one interaction"
        assert judged.grade is Grade.WRONG
        assert judged.critic.version == 0
        *pieces, refined = client.stream_refine(QUESTION, RIGHT["response"], critique="Fine.", episode_id=None)
        assert isinstance(refined, RefineResult)
        texts = [piece.text for piece in pieces if isinstance(piece, TextDelta) and piece.role == "refinement"]
        assert "".join(texts).strip() == refined.refined_response.strip()
        label = client.feedback(judged.id, correct=False)
        assert client.feedback(request_id="first", correct=False).id == label.id, "repeated feedback is stored once"

        listed = list(client.interactions(limit=1))
        assert [item.id for item in listed] == [refined.id, judged.id], "two pages, newest first"
        assert [item.id for item in client.interactions(kind=Kind.CRITIQUE)] == [judged.id]
        read = client.interaction(judged.id)
        assert isinstance(read.result, CritiqueResult)
        assert read.result == judged
        assert len(read.feedback) == 1
        client.delete_interaction(refined.id)
        with pytest.raises(ServiceError) as caught:
            client.interaction(refined.id)
        assert (caught.value.status, caught.value.type) == (404, "urn:gadfly:problem:not-found")
        assert caught.value.request_id

        assert [critic.version for critic in client.critics()] == [0]
        assert client.critic(0).swaps == []
        assert client.plan().stage_1.answers + client.plan().heldout.answers == 1
        run = client.retrain({"steps_stage_1": 1}, request_id="night")
        assert client.retrain({"steps_stage_1": 1}, request_id="night").id == run.id
        assert [each.id for each in client.runs()] == [run.id]
        assert client.cancel(run.id).status == "cancelled"
        *_, last = client.follow(run.id)
        assert last.data["status"] == "cancelled"
        assert client.set_label(judged.id, "right", reason="it was right").correct is True
        assert client.label(judged.id).decided == "right"
        assert [act.reason for act in client.acts()] == ["it was right"]
        assert list(client.conflicts()) == []
        assert client.state().live_critic == 0
        assert client.readiness().ready


async def test_requests_at_the_same_time(settings: Settings) -> None:
    async with serving(settings) as service, AsyncClient(str(service.base_url)) as client:
        first, second = await asyncio.gather(
            client.critique(QUESTION, RIGHT["response"], request_id="one"),
            client.critique(QUESTION, RIGHT["response"], request_id="one"),
        )
        assert first.id == second.id, "one interaction for one request id"
        streamed = [event async for event in client.stream_critique(QUESTION, WRONG["response"])]
        assert isinstance(streamed[-1], CritiqueResult)
        text = "".join(piece.text for piece in streamed[:-1] if isinstance(piece, TextDelta))
        assert text.strip() == streamed[-1].critique.strip()
        assert [item.id async for item in client.interactions(limit=1)] == [streamed[-1].id, first.id]

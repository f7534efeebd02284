"""`gadfly critique`, `refine` and `feedback`: the service's main endpoints."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gadfly.cli.commands.arguments import Json, RequestId, Task
from gadfly.cli.options import takes_settings
from gadfly.settings import Settings

if TYPE_CHECKING:
    from gadfly.client import calls

app = typer.Typer()

_REQUEST_OPTIONS = (
    "task",
    "temperature",
    "max_tokens",
)  # settings of these names exist; here they are fields

Question = Annotated[
    str | None, typer.Option("--question", "-q", help="The question: text, @FILE, or - for standard input.")
]
Response = Annotated[str | None, typer.Option("--response", "-r", help="The answer to judge: text, @FILE or -.")]
Reference = Annotated[str | None, typer.Option("--reference", help="The right answer, if known: text, @FILE or -.")]
Critic = Annotated[str | None, typer.Option("--critic", help="live, candidate, or a version number.")]
Temperature = Annotated[
    float | None, typer.Option("--temperature", help="Sampling temperature of the critic. Unset: the service's.")
]
MaxTokens = Annotated[
    int | None, typer.Option("--max-tokens", help="Longest critique and refinement. Unset: the service's.")
]
Seed = Annotated[int | None, typer.Option("--seed", help="Same seed, same critic, same input: same answer.")]
Episode = Annotated[
    str | None, typer.Option("--episode", help="Episode to add this interaction to; it pins the critic.")
]


@app.command()
@takes_settings(without=_REQUEST_OPTIONS)
def critique(
    settings: Settings,
    question: Question = None,
    response: Response = None,
    reference: Reference = None,
    n: Annotated[int | None, typer.Option("-n", help="How many critiques to sample.")] = None,
    task: Task = None,
    critic: Critic = None,
    temperature: Temperature = None,
    max_tokens: MaxTokens = None,
    seed: Seed = None,
    episode: Episode = None,
    request_id: RequestId = None,
    json: Json = False,
) -> None:
    """Judge an answer step by step (arguments, or the JSON of POST /critique on standard input)."""
    from gadfly.cli.answer_view import show_critique

    fields = _common_fields(reference, critic, temperature=temperature, max_tokens=max_tokens, seed=seed)
    fields |= {"episode_id": episode, "request_id": request_id, "n": n, "task": task}
    _send(settings, "/critique", question, response, fields, json=json, show=show_critique)


@app.command()
@takes_settings(without=_REQUEST_OPTIONS)
def refine(
    settings: Settings,
    question: Question = None,
    response: Response = None,
    reference: Reference = None,
    rounds: Annotated[int | None, typer.Option("--rounds", help="Rounds of critique and rewrite.")] = None,
    when: Annotated[str | None, typer.Option("--when", help="always, or if_incorrect.")] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", help="Independent runs, decided by majority vote.")
    ] = None,
    critique: Annotated[
        str | None, typer.Option("--critique", help="Refine with this critique: text, @FILE or -.")
    ] = None,
    critique_id: Annotated[str | None, typer.Option("--critique-id", help="Refine with this earlier critique.")] = None,
    task: Task = None,
    critic: Critic = None,
    temperature: Temperature = None,
    max_tokens: MaxTokens = None,
    seed: Seed = None,
    episode: Episode = None,
    request_id: RequestId = None,
    json: Json = False,
) -> None:
    """Rewrite an answer with a critique (arguments, or the JSON of POST /refine on standard input)."""
    from gadfly.cli.answer_view import show_refinement
    from gadfly.cli.request_input import read_text

    fields = _common_fields(reference, critic, temperature=temperature, max_tokens=max_tokens, seed=seed)
    fields |= {"episode_id": episode, "request_id": request_id, "task": task}
    fields |= {"rounds": rounds, "when": when, "samples": samples, "critique_id": critique_id}
    fields["critique"] = read_text(critique)
    _send(settings, "/refine", question, response, fields, json=json, show=show_refinement)


@app.command()
@takes_settings()
def feedback(
    settings: Settings,
    interaction_id: Annotated[str | None, typer.Argument(help="The interaction; or give --request-id.")] = None,
    correct: Annotated[
        bool | None,
        typer.Option(
            "--correct/--incorrect",
            help="Whether the response, or the critique or refinement that is named, was right.",
        ),
    ] = None,
    reference: Reference = None,
    edited: Annotated[str | None, typer.Option("--edited", help="A corrected response.")] = None,
    rating: Annotated[int | None, typer.Option("--rating", help="1 (worst) to 5 (best).")] = None,
    critique_id: Annotated[str | None, typer.Option("--critique", help="The critique that this is about.")] = None,
    refinement_id: Annotated[
        str | None, typer.Option("--refinement", help="The refinement that this is about.")
    ] = None,
    helpful: Annotated[
        bool | None, typer.Option("--helpful/--unhelpful", help="Whether that critique or refinement helped.")
    ] = None,
    comment: Annotated[str | None, typer.Option("--comment", help="Free text.")] = None,
    request_id: Annotated[
        str | None, typer.Option("--request-id", help="The request id that the interaction was sent with.")
    ] = None,
    json: Json = False,
) -> None:
    """Report whether a response was right. The critic learns from it."""
    from gadfly.cli.connection import connect
    from gadfly.cli.request_input import read_text
    from gadfly.cli.terminal import out, print_json
    from gadfly.client import calls

    call = calls.feedback(
        interaction_id,
        request_id=request_id,
        critique_id=critique_id,
        refinement_id=refinement_id,
        correct=correct,
        helpful=helpful,
        reference=read_text(reference),
        edited_response=read_text(edited),
        rating=rating,
        comment=comment,
    )
    with connect(settings) as client:
        result = client.document(call)
    if json:
        print_json(result)
        return
    grade = f"; by the reference the response is {result['grade'].replace('_', ' ')}" if result.get("grade") else ""
    if result.get("grade_problem"):
        grade = f"; no grade: {result['grade_problem']}"
    out.print(f"feedback {result['id']} stored for interaction {result['interaction_id']}{grade}")


def _common_fields(reference: str | None, critic: str | None, **options: Any) -> dict[str, Any]:
    from gadfly.cli.request_input import read_text

    version = int(critic) if critic is not None and critic.isdecimal() else critic
    return {**options, "reference": read_text(reference), "critic": version}


def _send(
    settings: Settings,
    path: "calls.AnswerPath",
    question: str | None,
    response: str | None,
    fields: Mapping[str, Any],
    *,
    json: bool,
    show: Callable[[Mapping[str, Any]], None],
) -> None:
    from gadfly.cli.answer_view import stream_answer
    from gadfly.cli.connection import connect
    from gadfly.cli.request_input import request_body
    from gadfly.cli.terminal import print_json
    from gadfly.client import calls

    body = request_body(question, response, fields)
    with connect(settings) as client:
        if json:
            print_json(client.document(calls.answer(path, body)))
        else:
            show(stream_answer(client, path, body))

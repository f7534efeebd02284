import { useEffect, useRef, useState } from "preact/hooks";
import { events, get, post } from "../api/client";
import type { Critic, CritiqueResult, Feedback, RefineResult } from "../api/types";
import { milliseconds, percent } from "../lib/format";
import { asError, useLoaded, useTitle } from "../lib/hooks";
import { link, navigate, type Query, type Route } from "../router";
import { Badge, Button, Card, Empty, ErrorNote, GradeBadge, PageHead, Select, TextArea, TextField, Toggle, type Choice } from "../ui/basics";
import { CritiqueBody, Diff, StreamingCritique } from "../ui/critique";
import { toast } from "../ui/toast";

interface Side {
  critic: string;
  state: "idle" | "running" | "done" | "failed";
  critique: string; // while it streams
  rewrite: string;
  result?: CritiqueResult | RefineResult | undefined;
  error?: Error | undefined;
}

interface Piece {
  role: "critic" | "actor";
  round: number;
  sample: number;
  text: string;
}

const EXAMPLE = {
  question: "A baker packs 12 rolls in a box. She fills 5 boxes and gives away 17 rolls. How many are left?",
  response: "She packs 5 * 12 = 60 rolls.\nShe gives 17 away, so 60 - 17 = 33 rolls are left.\nThe answer is 33.",
};

const idle = (critic: string): Side => ({ critic, state: "idle", critique: "", rewrite: "" });

export function PlaygroundPage({ route }: { route: Route }) {
  useTitle("Playground");
  const critics = useLoaded("critics", (signal) => get<Critic[]>("critics", {}, signal));
  const query = route.query;
  const [question, setQuestion] = useState(query["question"] ?? "");
  const [response, setResponse] = useState(query["response"] ?? "");
  const [reference, setReference] = useState(query["reference"] ?? "");
  const [temperature, setTemperature] = useState(query["temperature"] ?? "0");
  const [stored, setStored] = useState(query["store"] === "yes");
  const [refine, setRefine] = useState(query["refine"] === "yes");
  const [sides, setSides] = useState<Side[]>([idle(query["critic"] ?? "live"), ...(query["with"] ? [idle(query["with"])] : [])]);
  const [asking, setAsking] = useState(false);
  const [invalid, setInvalid] = useState<string>();
  const running = useRef<AbortController | null>(null);
  useEffect(() => () => running.current?.abort(), []);

  const change = (place: number, values: Partial<Side>) =>
    setSides((old) => old.map((side, each) => (each === place ? { ...side, ...values } : side)));
  const remember = () => {
    const kept: Query = { question, response, reference, critic: sides[0]!.critic, with: sides[1]?.critic ?? "" };
    if (temperature !== "0") kept["temperature"] = temperature;
    if (refine) kept["refine"] = "yes";
    if (stored) kept["store"] = "yes";
    navigate(link("playground", kept), { replace: true });
  };

  const judge = async (place: number, aborted: AbortController) => {
    const side = sides[place]!;
    change(place, { state: "running", critique: "", rewrite: "", result: undefined, error: undefined });
    let critique = "";
    let rewrite = "";
    const body = {
      question,
      response,
      critic: /^\d+$/.test(side.critic) ? Number(side.critic) : side.critic,
      temperature: Number(temperature),
      stream: true,
      store: stored,
      ...(reference.trim() ? { reference: reference.trim() } : {}),
    };
    try {
      for await (const { event, data } of events("POST", refine ? "refine" : "critique", { body, signal: aborted.signal })) {
        if (event === "text") {
          const piece = data as Piece;
          if (piece.role === "critic") critique += piece.text;
          else rewrite += piece.text;
          change(place, { critique, rewrite });
        } else if (event === "result") {
          change(place, { state: "done", result: data as CritiqueResult | RefineResult });
        } else if (event === "error") {
          throw new Error((data as { detail: string }).detail);
        }
      }
    } catch (failure) {
      if (!aborted.signal.aborted) change(place, { state: "failed", error: asError(failure) });
    }
  };
  const run = async (event?: Event) => {
    event?.preventDefault();
    if (!question.trim() || !response.trim()) {
      setInvalid("Give a question and an answer.");
      return;
    }
    setInvalid(undefined);
    remember();
    running.current?.abort();
    running.current = new AbortController();
    await Promise.all(sides.map((_, place) => judge(place, running.current!)));
  };
  const stop = () => {
    running.current?.abort();
    setSides((old) => old.map((side) => (side.state === "running" ? { ...side, state: "idle" } : side)));
  };
  const ask = async () => {
    if (!question.trim()) {
      setInvalid("Give a question.");
      return;
    }
    setInvalid(undefined);
    setAsking(true);
    try {
      const answer = await post<{ choices: { message: { content: string } }[] }>("v1/chat/completions", {
        model: "actor",
        messages: [{ role: "user", content: question }],
      });
      setResponse(answer.choices[0]?.message.content ?? "");
    } catch (failure) {
      toast(`The actor did not answer: ${asError(failure).message}`, { tone: "bad" });
    } finally {
      setAsking(false);
    }
  };

  const busy = sides.some((side) => side.state === "running");
  const choices: Choice[] = [
    ["live", "Live critic"],
    ...(critics.data?.some((critic) => critic.pointers.includes("candidate")) ? [["candidate", "Candidate"] as Choice] : []),
    ...(critics.data ?? []).filter((critic) => !critic.archived).map((critic): Choice => [
      String(critic.version),
      `critic@${critic.version}${critic.pointers.length ? ` (${critic.pointers.join(", ")})` : ""}`,
    ]),
  ];

  return (
    <>
      <PageHead title="Playground" lead="Judge an answer step by step, rewrite it, and compare two critics on the same input." />
      <form class="card" onSubmit={(event) => void run(event)} aria-label="Input">
        <div class="columns">
          <div class="stack">
            <TextArea label="Question" value={question} onInput={setQuestion} rows={4} placeholder="What was asked" />
            <div class="row">
              <Button icon="spark" busy={asking} onClick={() => void ask()}>Let the actor answer</Button>
              {!question && !response && (
                <Button kind="quiet" onClick={() => { setQuestion(EXAMPLE.question); setResponse(EXAMPLE.response); }}>Use an example</Button>
              )}
            </div>
          </div>
          <TextArea
            label="Answer" value={response} onInput={setResponse} rows={6} placeholder="The answer to judge"
            onKeyDown={(event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && void run()}
          />
        </div>
        <div class="form">
          <Select label="Critic" value={sides[0]!.critic} choices={choices} onInput={(critic) => change(0, { critic })} />
          <Select
            label="Compare with" value={sides[1]?.critic ?? ""} choices={[["", "No other critic"], ...choices]}
            onInput={(critic) => setSides(critic ? [sides[0]!, idle(critic)] : [sides[0]!])}
          />
          <TextField label="Reference (optional)" value={reference} onInput={setReference} placeholder="Never shown to the model" />
          <TextField label="Temperature" type="number" value={temperature} onInput={setTemperature} inputMode="decimal" />
        </div>
        <div class="row">
          {busy
            ? <Button icon="stop" onClick={stop}>Stop</Button>
            : <Button kind="primary" icon="start" type="submit" title="Ctrl+Enter in the answer">{refine ? "Judge and rewrite" : "Judge"}</Button>}
          <Toggle label="Also rewrite" checked={refine} onChange={setRefine} />
          <Toggle label="Store as traffic" checked={stored} onChange={setStored} />
          {invalid && <span class="bad-text small" role="alert">{invalid}</span>}
        </div>
      </form>
      {critics.error && <ErrorNote error={critics.error} retry={critics.reload} />}
      <div class="sides" aria-live="polite">
        {sides.map((side, place) => <SideCard key={place} side={side} response={response} stored={stored} alone={sides.length === 1} />)}
      </div>
    </>
  );
}

function SideCard({ side, response, stored, alone }: { side: Side; response: string; stored: boolean; alone: boolean }) {
  const { result } = side;
  if (side.state === "idle") {
    return alone ? (
      <div class="card"><Empty icon="play" title="The critique appears here">It streams in step by step, each with its verdict.</Empty></div>
    ) : (
      <Card title={name(side.critic)}><p class="muted">It has not judged yet.</p></Card>
    );
  }
  return (
    <Card
      title={result ? `critic@${result.critic.version}` : name(side.critic)}
      actions={result && <span class="muted small number">{milliseconds(result.latency_ms)} · {result.usage.completion_tokens} tokens</span>}
    >
      {side.error && <ErrorNote error={side.error} />}
      {side.state === "running" && (side.rewrite
        ? <><StreamingCritique text={side.critique} /><h3>Rewrite</h3><p class="answer-text caret">{side.rewrite}</p></>
        : <StreamingCritique text={side.critique} />)}
      {result && (result.kind === "refine" ? <Refined result={result} response={response} /> : <Judged result={result} />)}
      {result && stored && <Vote id={result.id} />}
    </Card>
  );
}

function name(critic: string): string {
  return critic === "live" ? "Live critic" : critic === "candidate" ? "Candidate" : `critic@${critic}`;
}

function Judged({ result }: { result: CritiqueResult }) {
  const first = result.critiques.find((critique) => critique.text === result.critique) ?? result.critiques[0]!;
  return (
    <>
      {(result.grade || result.grade_problem) && (
        <p class="row small">By the reference: {result.grade ? <GradeBadge grade={result.grade} /> : <span class="muted">{result.grade_problem}</span>}</p>
      )}
      <CritiqueBody critique={first} />
    </>
  );
}

function Refined({ result, response }: { result: RefineResult; response: string }) {
  const changed = result.refined_response !== response;
  return (
    <>
      {result.rounds.map((round) => (
        <div key={round.critique.id} class="stack">
          {result.rounds.length > 1 && <h3>Round {round.critique.round + 1}</h3>}
          <CritiqueBody critique={round.critique} />
        </div>
      ))}
      <div class="exchange-part">
        <h3 class="row">
          Rewrite {changed ? null : <Badge>unchanged</Badge>}
          {result.grade && <>before <GradeBadge grade={result.grade} /></>}
          {result.refined_grade && <>after <GradeBadge grade={result.refined_grade} /></>}
        </h3>
        <div class="block"><Diff before={response} after={result.refined_response} /></div>
        {result.samples.length > 1 && <p class="small muted">{result.votes} of {result.samples.length} samples ended with it ({percent(result.votes / result.samples.length)}).</p>}
      </div>
    </>
  );
}

/** A label for what was just stored. */
function Vote({ id }: { id: string }) {
  const [given, setGiven] = useState<boolean>();
  const vote = async (correct: boolean) => {
    try {
      await post<Feedback>("feedback", { interaction_id: id, correct });
      setGiven(correct);
    } catch (failure) {
      toast(`The label was not stored: ${asError(failure).message}`, { tone: "bad" });
    }
  };
  return (
    <div class="row">
      <span class="small muted">Was the answer right?</span>
      <Button kind={given === true ? "good" : undefined} icon="check" aria-pressed={given === true} onClick={() => void vote(true)}>Right</Button>
      <Button kind={given === false ? "bad" : undefined} icon="cross" aria-pressed={given === false} onClick={() => void vote(false)}>Wrong</Button>
      <a class="small" href={link(`traffic/${id}`)}>Open in traffic</a>
    </div>
  );
}

import { useRef, useState } from "preact/hooks";
import { get, post } from "../api/client";
import type { Plan, Run, RunPage as Page, RunSummary } from "../api/types";
import { count, duration, plural, short, words } from "../lib/format";
import { asError, useLoaded, useTitle } from "../lib/hooks";
import { link, navigate, type Route } from "../router";
import { Badge, Button, Empty, ErrorNote, Loading, Note, PageHead, Select, TextArea, Time, type Choice } from "../ui/basics";
import { Dialog } from "../ui/dialog";
import { OutcomeBadge } from "./critics";
import { useViewer } from "../viewer";

const TONES = { queued: "plain", running: "accent", succeeded: "good", failed: "bad", cancelled: "warn" } as const;

export function RunStatus({ status }: { status: string }) {
  return <Badge tone={TONES[status as keyof typeof TONES] ?? "plain"}>{words(status)}</Badge>;
}

export function RunsPage({ route }: { route: Route }) {
  useTitle("Runs");
  const runs = useLoaded("runs", (signal) => get<Page>("admin/runs", { limit: 50 }, signal), 10_000);
  const [rest, setRest] = useState<{ items: RunSummary[]; cursor: string | null }>();
  const [error, setError] = useState<Error>();
  const { may } = useViewer();
  const asks = route.query["new"] === "yes" && may("train");
  const loadMore = async (cursor: string) => {
    try {
      const page = await get<Page>("admin/runs", { limit: 50, cursor });
      setRest((old) => ({ items: [...(old?.items ?? []), ...page.items], cursor: page.next_cursor }));
    } catch (failure) {
      setError(asError(failure));
    }
  };
  return (
    <>
      <PageHead
        title="Runs" lead="A run trains a new critic on labelled answers, and the gate decides whether it may go live."
        actions={may("train") && <a class="button button-primary" href={link("runs", { new: "yes" })}>Start a run</a>}
      />
      <Loading of={runs} lines={8}>
        {(page) => {
          const items = [...page.items, ...(rest?.items ?? [])];
          const cursor = rest ? rest.cursor : page.next_cursor;
          return items.length === 0 ? (
            <div class="card"><Empty icon="runs" title="No run yet" action={may("train") && <a class="button button-primary" href={link("runs", { new: "yes" })}>See what a run would do</a>}>A dry run says what there is to learn from, and what the gate could see.</Empty></div>
          ) : (
            <>
              {items.length > 1 && <Compare runs={items} />}
              <section class="card card-flush" aria-label="Runs">
                <ul class="items">{items.map((run) => <Item key={run.id} run={run} />)}</ul>
                {error && <ErrorNote error={error} />}
                {cursor && <div class="more"><Button onClick={() => void loadMore(cursor)}>Show more</Button></div>}
              </section>
            </>
          );
        }}
      </Loading>
      {asks && <NewRun onClose={() => navigate("#/runs", { replace: true })} />}
    </>
  );
}

function Item({ run }: { run: RunSummary }) {
  const { progress } = run;
  return (
    <li>
      <div class="row">
        <a class="cover" href={link(`runs/${run.id}`)}>Run {short(run.id)}</a>
        <RunStatus status={run.status} />
        <OutcomeBadge outcome={run.outcome} />
        {run.version !== null && <Badge tone="accent">critic@{run.version}</Badge>}
      </div>
      {run.status === "running" && (
        <div class="progress" role="progressbar" aria-label={`Progress of run ${short(run.id)}`} aria-valuenow={progress.step} aria-valuemin={0} aria-valuemax={progress.steps}>
          <span style={{ width: `${progress.steps ? (progress.step / progress.steps) * 100 : 0}%` }} />
        </div>
      )}
      {run.error && <p class="bad-text small clip">{run.error}</p>}
      <div class="items-meta">
        <span>{run.trigger === "admin" ? "By hand" : run.trigger === "labels" ? "By new labels" : words(run.trigger)}</span>
        <span>{progress.stage ? words(progress.stage) : "Not begun"}, step {progress.step} of {progress.steps}</span>
        {progress.eta_s !== null && run.status === "running" && <span>{duration(progress.eta_s)} left</span>}
        {run.started_at && run.finished_at && <span>took {duration((Date.parse(run.finished_at) - Date.parse(run.started_at)) / 1000)}</span>}
        {run.reproduces && <span>repeats {short(run.reproduces)}</span>}
        <Time at={run.created_at} />
      </div>
    </li>
  );
}

function Compare({ runs }: { runs: RunSummary[] }) {
  const [a, setA] = useState(runs[0]!.id);
  const [b, setB] = useState(runs[1]!.id);
  const choices = runs.map((run): Choice => [run.id, `${short(run.id)} · ${words(run.status)}`]);
  return (
    <div class="filters compare">
      <Select label="Compare" value={a} choices={choices} onInput={setA} />
      <Select label="with" value={b} choices={choices} onInput={setB} />
      <a class="button" href={link(`runs/${a}`, { with: b })}>Compare</a>
    </div>
  );
}

function readConfig(text: string): Record<string, unknown> {
  const config: Record<string, unknown> = {};
  for (const line of text.split("\n").map((each) => each.trim()).filter(Boolean)) {
    const [name, ...value] = line.split("=");
    if (!value.length) throw new Error(`“${line}” is not of the form option = value.`);
    const shown = value.join("=").trim();
    try {
      config[name!.trim()] = JSON.parse(shown);
    } catch {
      config[name!.trim()] = shown;
    }
  }
  return config;
}

function NewRun({ onClose }: { onClose: () => void }) {
  const [text, setText] = useState("");
  const [plan, setPlan] = useState<{ text: string; plan: Plan }>();
  const [busy, setBusy] = useState<"plan" | "start">();
  const [error, setError] = useState<Error>();
  const requestId = useRef(`console ${Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("")}`);
  const act = async (what: "plan" | "start") => {
    setBusy(what);
    setError(undefined);
    try {
      const config = readConfig(text);
      if (what === "plan") {
        setPlan({ text, plan: await post<Plan>("admin/retrain", { config, dry_run: true }) });
      } else {
        const run = await post<Run>("admin/retrain", { config, request_id: requestId.current });
        navigate(link(`runs/${run.id}`));
      }
    } catch (failure) {
      setError(asError(failure));
    }
    setBusy(undefined);
  };
  const planned = plan?.text === text;
  return (
    <Dialog
      title="Start a run" onClose={onClose}
      actions={
        <>
          <Button onClick={onClose}>Cancel</Button>
          <Button kind={planned ? undefined : "primary"} busy={busy === "plan"} onClick={() => void act("plan")}>Dry run</Button>
          <Button kind={planned ? "primary" : undefined} icon="start" busy={busy === "start"} disabled={!planned} title={planned ? undefined : "Look at the dry run first"} onClick={() => void act("start")}>Start</Button>
        </>
      }
    >
      <TextArea
        label="Options that differ from the deployment's" value={text} onInput={setText} rows={3} placeholder={"steps_stage_1 = 50\nsteps_stage_2 = 50"}
        hint="One a line. Empty: the deployment's own options. A dry run stores nothing."
      />
      {error && <ErrorNote error={error} />}
      {plan && planned && <PlanBody plan={plan.plan} />}
    </Dialog>
  );
}

function PlanBody({ plan }: { plan: Plan }) {
  return (
    <div class="stack">
      <ul class="reasons">
        <li>Stage I learns verdicts from {plural(plan.stage_1.answers, "labelled answer")} to {plural(plan.stage_1.questions, "question")}: {count(plan.stage_1.right)} right, {count(plan.stage_1.wrong)} wrong.</li>
        <li>Stage II learns what helps a rewrite from the {plural(plan.stage_2.answers, "answer")} with a reference{plan.pool_answers > 0 ? `, and ${count(plan.pool_answers)} answers that the actor samples` : ""}.</li>
        <li>
          The gate judges {plural(plan.heldout.answers, "held-out answer")}: {count(plan.heldout.right)} right, {count(plan.heldout.wrong)} wrong; {plan.heldout_with_reference.answers} of them have a reference.
        </li>
        <li>{plural(plan.steps, "step")}{plan.seconds !== null && `, about ${duration(plan.seconds)}`}.</li>
        {plan.notes.map((note) => <li key={note}>{note}</li>)}
      </ul>
      {plan.warnings.map((warning) => <Note key={warning} tone="warn" icon="warn">{warning}</Note>)}
    </div>
  );
}

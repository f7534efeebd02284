import { useEffect, useRef, useState } from "preact/hooks";
import { events, get, post } from "../api/client";
import type { Comparison, Run, SamplePage, StepPage } from "../api/types";
import { decimal, duration, percent, plural, short, words } from "../lib/format";
import { asError, useLoaded, useTitle } from "../lib/hooks";
import { link, navigate, type Route } from "../router";
import { Badge, Button, Card, Empty, ErrorNote, Facts, GradeBadge, LabelBadge, Loading, Note, PageHead, Skeleton, Tabs, Time, VerdictBadge } from "../ui/basics";
import { LineChart, type Mark, type Series } from "../ui/chart";
import { Confirm } from "../ui/dialog";
import { toast } from "../ui/toast";
import { GateBody, type GateReport } from "./critic";
import { OutcomeBadge } from "./critics";
import { RunStatus } from "./runs";
import { useViewer } from "../viewer";

interface StepPoint {
  step: number;
  metrics: Record<string, number>;
}

interface RunEvent {
  id: string | null;
  kind: string;
  at: string;
  data: Record<string, unknown>;
}

interface Followed {
  steps: StepPoint[];
  validations: StepPoint[];
  log: RunEvent[];
  loaded: boolean; // something came, or there is nothing
  ended: boolean;
  error?: Error | undefined;
}

const OVER = ["succeeded", "failed", "cancelled"];
const PAUSE_MS = 2000;
const NOTHING: Followed = { steps: [], validations: [], log: [], loaded: false, ended: false };

/** The events of a run, the past ones and then new ones; a broken stream continues after the last one seen. */
function useEvents(id: string, onStatus: () => void): Followed {
  const [state, setState] = useState<Followed>(NOTHING);
  const latest = useRef(onStatus);
  latest.current = onStatus;
  useEffect(() => {
    const aborted = new AbortController();
    let after = "0";
    const found: Followed = { ...NOTHING, steps: [], validations: [], log: [] };
    let reload: number | undefined;
    const readAgain = () => {
      clearTimeout(reload);
      reload = window.setTimeout(() => latest.current(), 300);
    };
    let timer: number | undefined;
    const show = () => {
      timer ??= window.setTimeout(() => {
        timer = undefined;
        setState({ ...found, steps: [...found.steps], validations: [...found.validations], log: [...found.log] });
      }, 60);
    };
    const follow = async () => {
      while (!aborted.signal.aborted && !found.ended) {
        try {
          let any = false;
          for await (const { event, id: eventId, data } of events("GET", `admin/runs/${id}/events`, { params: { after }, signal: aborted.signal })) {
            any = true;
            found.loaded = true;
            if (eventId) after = eventId;
            const body = data as Record<string, unknown> & { at: string };
            if (event === "step") found.steps.push(body as unknown as StepPoint);
            else if (event === "validation") found.validations.push(body as unknown as StepPoint);
            else if (event !== "samples") found.log.push({ id: eventId, kind: event, at: body.at, data: body });
            if (event === "status" && OVER.includes(String(body["status"]))) found.ended = true;
            if (["status", "stage", "gate", "published"].includes(event)) readAgain();
            show();
          }
          if (!any) found.ended = true; // 204: the run is over
          found.error = undefined;
        } catch (failure) {
          if (aborted.signal.aborted) return;
          found.error = asError(failure);
        }
        found.loaded = true;
        show();
        if (!found.ended) await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
      }
    };
    void follow();
    return () => {
      aborted.abort();
      clearTimeout(timer);
      clearTimeout(reload);
    };
  }, [id]);
  return state;
}

export function RunPage({ route }: { route: Route }) {
  const id = route.path[1]!;
  const other = route.query["with"];
  const tab = route.query["view"] ?? "curves";
  useTitle(`Run ${short(id)}`);
  const found = useLoaded(id, (signal) => get<Run>(`admin/runs/${id}`, {}, signal));
  const followed = useEvents(id, found.reload);
  const [asks, setAsks] = useState<"cancel" | "reproduce">();
  const { may } = useViewer();
  const run = found.data;
  const isOver = run ? OVER.includes(run.status) : false;
  const alarms = followed.log.filter((event) => event.kind === "alarm");
  const newest = followed.steps.at(-1)?.step ?? run?.progress.step ?? 0;
  const view = (name: string) => link(`runs/${id}`, { view: name, with: other });
  return (
    <>
      <PageHead
        back={{ href: "#/runs", text: "Runs" }}
        title={<>Run {short(id)} {run && <RunStatus status={run.status} />} {run && <OutcomeBadge outcome={run.outcome} />}</>}
        lead={run && <span class="row"><Time at={run.created_at} /> {run.version !== null && <a href={link(`critics/${run.version}`)}>critic@{run.version}</a>} {run.reproduces && <a href={link(`runs/${run.reproduces}`)}>repeats {short(run.reproduces)}</a>}</span>}
        actions={run && may("train") && (isOver
          ? <Button icon="refresh" onClick={() => setAsks("reproduce")}>Reproduce</Button>
          : <Button kind="danger" icon="stop" disabled={run.cancel_requested_at !== null} onClick={() => setAsks("cancel")}>{run.cancel_requested_at ? "Cancelling…" : "Cancel"}</Button>)}
      />
      {found.error && <ErrorNote error={found.error} retry={found.reload} />}
      {followed.error && <Note tone="warn" icon="warn" title="The live events stopped">{followed.error.message} Trying again.</Note>}
      {run?.error && <Note tone="bad" icon="warn" title="The run ended with an error">{run.error}</Note>}
      {alarms.map((alarm, place) => <Note key={place} tone="bad" icon="warn" title="Alarm">{String(alarm.data["message"])} <span class="muted"><Time at={alarm.at} /></span></Note>)}
      {run && (
        <Card label="Progress">
          <Stages now={run.progress.stage} seen={followed.log.filter((event) => event.kind === "stage").map((event) => String(event.data["stage"]))} isOver={isOver} />
          <div class="meter">
            <div class="meter-head">
              <span>Step {isOver ? run.progress.step : Math.max(newest, run.progress.step)} of {run.progress.steps}</span>
              <span class="muted">{isOver ? (run.started_at && run.finished_at ? `took ${duration((Date.parse(run.finished_at) - Date.parse(run.started_at)) / 1000)}` : "") : run.progress.eta_s !== null ? `${duration(run.progress.eta_s)} left` : "waiting for the trainer"}</span>
            </div>
            <div class="progress" role="progressbar" aria-label="Steps" aria-valuenow={newest} aria-valuemin={0} aria-valuemax={run.progress.steps || 1}>
              <span style={{ width: `${run.progress.steps ? (Math.max(newest, run.progress.step) / run.progress.steps) * 100 : 0}%` }} />
            </div>
          </div>
        </Card>
      )}
      {other && <CompareCard a={id} b={other} />}
      <Tabs
        label="Views of the run" current={tab}
        tabs={[["curves", "Curves"], ["samples", "Samples"], ["gate", "Gate"], ["events", "Events"], ["config", "Options"]].map(([name, text]) => ({ id: name!, text: text!, href: view(name!) }))}
      />
      {tab === "curves" && !followed.loaded && <div class="card"><Skeleton lines={8} /></div>}
      {tab === "curves" && followed.loaded && <Curves steps={followed.steps} validations={followed.validations} log={followed.log} other={other} own={id} />}
      {tab === "samples" && <Samples id={id} />}
      {tab === "gate" && (run?.gate ? <Card title={<>Gate <OutcomeBadge outcome={run.outcome} /></>}><GateBody gate={run.gate as unknown as GateReport} /></Card> : <div class="card"><Empty icon="critics" title="The gate has not decided">It compares both critics on held-out answers once the steps are done.</Empty></div>)}
      {tab === "events" && <Log log={followed.log} />}
      {tab === "config" && run && <Config run={run} />}
      {asks === "cancel" && (
        <Confirm title="Cancel this run?" action="Cancel the run" onClose={() => setAsks(undefined)} run={async () => { found.set(await post<Run>(`admin/runs/${id}/cancel`)); }}>
          <p>It ends within seconds, and nothing of it is published.</p>
        </Confirm>
      )}
      {asks === "reproduce" && (
        <Confirm
          title="Reproduce this run?" action="Start" kind="primary" onClose={() => setAsks(undefined)}
          run={async () => {
            const again = await post<Run>(`admin/runs/${id}/reproduce`);
            toast("The run is queued.");
            navigate(link(`runs/${again.id}`));
          }}
        >
          <p>A new run with the same options, answers and seeds. The trainer starts it when it is free.</p>
        </Confirm>
      )}
    </>
  );
}

const STAGES = ["select", "pool", "warm_start", "stage_1", "stage_2", "evaluate", "publish"];
const STAGE_NAMES: Record<string, string> = { stage_1: "Stage I", stage_2: "Stage II" };

function Stages({ now, seen, isOver }: { now: string | null; seen: string[]; isOver: boolean }) {
  const at = STAGES.indexOf(now ?? "");
  return (
    <ol class="stages" aria-label="Stages">
      {STAGES.map((stage, place) => (
        <li key={stage} class={!isOver && place === at ? "now" : place < at || (isOver && place <= at) || seen.includes(stage) ? "done" : ""} aria-current={!isOver && place === at ? "step" : undefined}>
          {STAGE_NAMES[stage] ?? words(stage)}
        </li>
      ))}
    </ol>
  );
}

interface Curve {
  title: string;
  unit: string;
  lines: [metric: string, name: string][];
  share?: boolean;
}

const CURVES: Curve[] = [
  { title: "Reward", unit: "mean of a critique", lines: [["mean_score", "Reward"]] },
  { title: "Verdict accuracy by class", unit: "%", lines: [["discrimination_right", "Right answers"], ["discrimination_wrong", "Wrong answers"]], share: true },
  { title: "Rewrites", unit: "%", lines: [["kept_right", "Right stays right"], ["fixed_wrong", "Wrong becomes right"]], share: true },
  { title: "KL to the anchor", unit: "nats a critique", lines: [["kl", "KL"]] },
  { title: "Length", unit: "tokens a critique", lines: [["mean_tokens", "Tokens"]] },
  { title: "Entropy", unit: "nats a token", lines: [["entropy", "Entropy"]] },
  { title: "Leakage of the reference", unit: "%", lines: [["answer_leakage", "Leakage"]], share: true },
  { title: "Verdicts missing", unit: "%", lines: [["no_verdict", "No or two verdicts"], ["verdict_drift", "Drift to one class"]], share: true },
  { title: "Groups without a difference", unit: "%", lines: [["zero_advantage", "Equal scores"]], share: true },
  { title: "Engine against trainer", unit: "nats a token", lines: [["logprob_gap_mean", "Gap"]] },
];

function Curves({ steps, validations, log, other, own }: { steps: StepPoint[]; validations: StepPoint[]; log: RunEvent[]; other: string | undefined; own: string }) {
  const against = useLoaded(`steps ${other}`, async (signal) => (other ? await get<StepPage>(`admin/runs/${other}/steps`, { limit: 1000 }, signal) : null));
  if (!steps.length) {
    return <div class="card"><Empty icon="runs" title="No step yet">The curves begin with the first step.</Empty></div>;
  }
  const marks: Mark[] = log.flatMap((event): Mark[] =>
    event.kind === "stage" && Number(event.data["step"]) > 0 ? [{ x: Number(event.data["step"]), text: `${STAGE_NAMES[String(event.data["stage"])] ?? words(String(event.data["stage"]))} begins` }] : [],
  );
  const line = (points: StepPoint[], metric: string) => points.flatMap((point) => (metric in point.metrics ? [{ x: point.step, y: point.metrics[metric]! }] : []));
  const chart = ({ title, unit, lines, share }: Curve) => {
    const series: Series[] = lines.map(([metric, name], place) => ({ name, color: place, points: line(steps, metric), dots: false }));
    if (against.data) {
      series.push(...lines.map(([metric, name], place): Series => ({ name: `${name}, ${short(other!)}`, color: place + 2, points: line(against.data!.items as unknown as StepPoint[], metric), dots: false })));
    }
    if (!series.some((each) => each.points.length)) return null;
    return (
      <figure key={title} class="card">
        <figcaption>{title} <span>{unit}</span></figcaption>
        <LineChart label={title} series={series} marks={marks} height={170} xName="Step" {...(share ? { formatY: (value: number) => percent(value) } : {})} />
      </figure>
    );
  };
  return (
    <>
      {against.error && <ErrorNote error={against.error} retry={against.reload} />}
      <div class="charts" data-run={own}>
        {CURVES.map(chart)}
        {validations.length > 0 && (
          <figure class="card">
            <figcaption>Validation <span>% of answers never learned from</span></figcaption>
            <LineChart
              label="Validation" height={170} xName="Step" formatY={(value) => percent(value)}
              series={[["balanced", "Verdicts, balanced"], ["accuracy_refined", "Right after rewrite"]].map(([metric, name], place) => ({ name: name!, color: place, points: line(validations, metric!) }))}
            />
          </figure>
        )}
      </div>
    </>
  );
}

function Samples({ id }: { id: string }) {
  const found = useLoaded(`samples ${id}`, (signal) => get<SamplePage>(`admin/runs/${id}/samples`, { steps: 50 }, signal), 15_000);
  return (
    <Loading of={found} lines={8}>
      {(page) => page.items.length === 0 ? (
        <div class="card"><Empty icon="book" title="No samples">A run keeps a few critiques of its first step and of every tenth.</Empty></div>
      ) : (
        <div class="stack">
          {page.items.map((sample, place) => (
            <Card
              key={place}
              title={<>Step {sample.step} <Badge>{STAGE_NAMES[sample.stage] ?? words(sample.stage)}</Badge></>}
              actions={<span class="row small"><VerdictBadge verdict={sample.verdict} /> answer was <LabelBadge label={sample.was_right ? "right" : "wrong"} /> {sample.refined && <>rewrite <GradeBadge grade={sample.refined} /></>} reward {decimal(sample.score, 2)}</span>}
            >
              <p class="text">{sample.critique}</p>
              <a class="small" href={link(`traffic/${sample.interaction_id}`)}>The answer</a>
            </Card>
          ))}
        </div>
      )}
    </Loading>
  );
}

function Log({ log }: { log: RunEvent[] }) {
  if (!log.length) return <div class="card"><p class="muted">Nothing has happened yet.</p></div>;
  return (
    <Card title="Events">
      <ol class="timeline">
        {[...log].reverse().map((event, place) => (
          <li key={place} class={event.kind === "alarm" ? "bad" : event.kind === "note" ? "plain" : ""}>
            <strong>{words(event.kind)}</strong> {describe(event)} <span class="muted small"><Time at={event.at} /></span>
          </li>
        ))}
      </ol>
    </Card>
  );
}

function describe({ kind, data }: RunEvent): string {
  switch (kind) {
    case "stage": return STAGE_NAMES[String(data["stage"])] ?? words(String(data["stage"]));
    case "status": return words(String(data["status"]));
    case "note":
    case "alarm": return String(data["message"]);
    case "gate": return words(String(data["outcome"]));
    case "published": return `critic@${String(data["version"])}`;
    default: return "";
  }
}

function Config({ run }: { run: Run }) {
  return (
    <Card title="Options">
      <Facts items={Object.entries(run.config).map(([name, value]): [string, string] => [name, typeof value === "object" && value !== null ? JSON.stringify(value) : String(value)])} />
      {run.manifest && <details><summary>Manifest: all that a repeat needs</summary><pre class="block" tabIndex={0}>{JSON.stringify(run.manifest, null, 2)}</pre></details>}
    </Card>
  );
}

function CompareCard({ a, b }: { a: string; b: string }) {
  const found = useLoaded(`compare ${a} ${b}`, (signal) => get<Comparison>("admin/runs/compare", { a, b }, signal));
  return (
    <Card title={<>Compared with <a href={link(`runs/${b}`)}>run {short(b)}</a></>} actions={<a class="button button-quiet" href={link(`runs/${a}`)}>End comparison</a>}>
      <Loading of={found} lines={3}>
        {(comparison) => (
          <>
            <p class="row">
              <span>{short(a)}: <OutcomeBadge outcome={comparison.a.outcome} /></span>
              <span>{short(b)}: <OutcomeBadge outcome={comparison.b.outcome} /></span>
              {comparison.answers && <span class="muted small">{plural(comparison.answers.both, "answer")} in both, {comparison.answers.only_a} only here, {comparison.answers.only_b} only there</span>}
            </p>
            {comparison.options.length === 0 ? <p class="muted">The options are equal.</p> : (
              <div class="table-scroll" tabIndex={0} role="region" aria-label="Different options">
                <table>
                  <thead><tr><th>Option</th><th>{short(a)}</th><th>{short(b)}</th></tr></thead>
                  <tbody>{comparison.options.map((row) => <tr key={row.option}><td><code>{row.option}</code></td><td>{JSON.stringify(row.a)}</td><td>{JSON.stringify(row.b)}</td></tr>)}</tbody>
                </table>
              </div>
            )}
          </>
        )}
      </Loading>
    </Card>
  );
}

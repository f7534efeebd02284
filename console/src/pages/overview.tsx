import type { ComponentChildren } from "preact";
import { get } from "../api/client";
import type { Accuracy, Overview, Rate } from "../api/types";
import { count, day, duration, percent, plural, short, words } from "../lib/format";
import { useLoaded, useTitle } from "../lib/hooks";
import { link, navigate, type Route } from "../router";
import { Badge, Card, Empty, Loading, PageHead, Select, Stat, Time } from "../ui/basics";
import { LineChart, type Mark, type Point, type Series } from "../ui/chart";
import { Icon, type IconName } from "../ui/icons";
import { useViewer } from "../viewer";

const CLASSES = { balanced: "Both classes, balanced", right: "Right answers called correct", wrong: "Wrong answers called incorrect" } as const;
const SPANS = { "7": "7 days", "30": "30 days", "90": "90 days", "365": "a year" } as const;
const BUCKET_MS = { hour: 3_600_000, day: 86_400_000, week: 604_800_000 } as const;
type Class = keyof typeof CLASSES;

export function OverviewPage({ route }: { route: Route }) {
  useTitle("Overview");
  const { may } = useViewer();
  const days = route.query["days"] ?? "30";
  const shown = (route.query["class"] ?? "balanced") as Class;
  if (!may("read")) {
    return (
      <>
        <PageHead title="Overview" />
        <div class="card"><Empty icon="key" title="This needs a key with the scope read" action={<a class="button button-primary" href="#/label">To the label queue</a>}>The overview shows the whole deployment.</Empty></div>
      </>
    );
  }
  return <Admin days={days} shown={shown} />;
}

function Admin({ days, shown }: { days: string; shown: Class }) {
  const overview = useLoaded("overview", (signal) => get<Overview>("admin/overview", {}, signal), 10_000);
  const accuracy = useLoaded(`accuracy ${days}`, (signal) => {
    const since = new Date(Date.now() - Number(days) * 86_400_000).toISOString();
    return get<Accuracy>("admin/overview/accuracy", { since, bucket: Number(days) > 60 ? "week" : "day" }, signal);
  }, 60_000);
  const set = (changes: Record<string, string>) => navigate(link("overview", { days, class: shown, ...changes }), { replace: true });
  return (
    <>
      <PageHead title="Overview" lead="Is the critic learning, what runs now, and what waits for a person." />
      <Loading of={overview} lines={4}>{(found) => <><Now overview={found} accuracy={accuracy.data} /><Waiting waiting={found.waiting} /></>}</Loading>
      <Card
        title="Verdict accuracy on labelled traffic"
        note="Each version on the deployment's own labelled answers, with 95 % intervals. For a trained version, only held-out questions and those that came after it."
        actions={
          <>
            <Select label="Class" value={shown} onInput={(value) => set({ class: value })} choices={Object.entries(CLASSES)} />
            <Select label="Time" value={days} onInput={(value) => set({ days: value })} choices={Object.entries(SPANS)} />
          </>
        }
      >
        <Loading of={accuracy} lines={8}>{(found) => <AccuracyChart accuracy={found} shown={shown} />}</Loading>
      </Card>
      {accuracy.data && accuracy.data.series.length > 0 && <Versions accuracy={accuracy.data} />}
    </>
  );
}

function Now({ overview, accuracy }: { overview: Overview; accuracy: Accuracy | undefined }) {
  const { run } = overview;
  const total = accuracy?.series.find((series) => series.version === overview.live)?.total.balanced;
  const base = accuracy?.series.find((series) => series.version === 0)?.total.balanced;
  const gain = total && base && overview.live !== 0 ? (total.value - base.value) * 100 : null;
  return (
    <div class="card">
      <dl class="stats">
        <Stat
          name="Live critic" value={<a href={link(`critics/${overview.live}`)}>critic@{overview.live}</a>}
          detail={overview.candidate !== null ? <>candidate <a href={link(`critics/${overview.candidate}`)}>critic@{overview.candidate}</a></> : "no candidate"}
        />
        <Stat
          name="Its accuracy, balanced" value={total ? percent(total.value, 1) : "–"}
          detail={total ? `${percent(total.low)} to ${percent(total.high)}, ${plural(total.answers, "answer")}${gain === null ? "" : `; ${gain >= 0 ? "+" : ""}${gain.toFixed(1)} points on critic@0`}` : "it needs labelled right and wrong answers"}
        />
        <Stat name="Judged in 24 h" value={count(overview.last_24h.interactions)} detail={`${plural(overview.last_24h.labels, "label")} in 24 h`} />
        <Stat
          name="Training" value={run ? <a href={link(`runs/${run.id}`)}>{words(run.status)}</a> : "Idle"}
          detail={run ? `${run.progress.stage ? words(run.progress.stage) : "waiting"}, step ${run.progress.step} of ${run.progress.steps}${run.progress.eta_s ? `, ${duration(run.progress.eta_s)} left` : ""}` : <a href="#/runs">Start a run</a>}
        />
      </dl>
    </div>
  );
}

function Waiting({ waiting }: { waiting: Overview["waiting"] }) {
  const items: { icon: IconName; tone: string; text: ComponentChildren; href: string; action: string }[] = [];
  if (waiting.conflicts) items.push({ icon: "label", tone: "warn", text: <><strong>{plural(waiting.conflicts, "answer")}</strong> without a label, because the votes differ</>, href: "#/label?reason=conflict", action: "Decide" });
  for (const one of waiting.undecided) items.push({ icon: "critics", tone: "plain", text: <><strong>critic@{one.version}</strong>: the gate needs more evidence, <Time at={one.at} /></>, href: link(`critics/${one.version}`), action: "Read the report" });
  for (const alarm of waiting.alarms) items.push({ icon: "warn", tone: "bad", text: <><strong>Alarm</strong> in run {short(alarm.run_id)}: {alarm.message}, <Time at={alarm.at} /></>, href: link(`runs/${alarm.run_id}`), action: "Open the run" });
  if (waiting.refused_swap) items.push({ icon: "swap", tone: "bad", text: <><strong>Refused swap</strong> to critic@{waiting.refused_swap.version}{waiting.refused_swap.reason && `: ${waiting.refused_swap.reason}`}</>, href: link(`critics/${waiting.refused_swap.version}`), action: "Open" });
  if (waiting.watch) items.push({ icon: "eye", tone: "warn", text: <><strong>Automatic rollback cannot decide</strong>: {waiting.watch}</>, href: "#/critics", action: "Critics" });
  return (
    <Card title={<>Waits for a person {items.length > 0 && <Badge tone="warn">{items.length}</Badge>}</>} class="waiting">
      {items.length === 0 ? <p class="row muted"><span class="good-text"><Icon name="check" /></span>Nothing waits.{waiting.disputed > 0 && ` ${plural(waiting.disputed, "label")} is disputed by some votes.`}</p> : (
        <ul class="recent">
          {items.map((item, place) => (
            <li key={place}>
              <span class={item.tone === "bad" ? "bad-text" : item.tone === "warn" ? "warn-text" : "muted"}><Icon name={item.icon} /></span>
              <span class="grow wrap">{item.text}</span>
              <a class="button" href={item.href}>{item.action}</a>
            </li>
          ))}
        </ul>
      )}
    </Card>
  );
}

function points(accuracy: Accuracy["series"][number], shown: Class): Point[] {
  return accuracy.points.flatMap((point) => {
    const rate: Rate | null = point[shown];
    return rate ? [{ x: Date.parse(point.at), y: rate.value, low: rate.low, high: rate.high, note: `${rate.answers} answers` }] : [];
  });
}

function AccuracyChart({ accuracy, shown }: { accuracy: Accuracy; shown: Class }) {
  const series: Series[] = accuracy.series.map((one, place) => ({ name: `critic@${one.version}`, color: place, points: points(one, shown) }));
  const marks: Mark[] = accuracy.events.map((event) => ({
    x: Date.parse(event.at),
    text: `${event.status === "refused" ? "Refused: " : ""}${words(event.kind)} from critic@${event.from_version} to critic@${event.version}${event.reason ? `: ${event.reason}` : ""}`,
    tone: event.kind === "rollback" || event.kind === "watch" || event.status === "refused" ? "bad" : undefined,
  }));
  if (!series.some((one) => one.points.length)) {
    return <Empty icon="overview" title="No curve for this time yet" action={<a class="button button-primary" href="#/label">Label answers</a>}>Labels on judged answers make this curve, of right and of wrong answers: they tell how often each version is right.</Empty>;
  }
  return (
    <>
      <LineChart
        label={`Verdict accuracy: ${CLASSES[shown]}`} series={series} marks={marks} height={280} yRange={[0, 1]}
        formatY={(value) => percent(value)} formatX={day} xName="" gap={3 * BUCKET_MS[accuracy.bucket]}
      />
      {accuracy.events.length > 0 && (
        <details class="small">
          <summary>{plural(accuracy.events.length, "swap")}</summary>
          <ul class="timeline">
            {accuracy.events.map((event, place) => (
              <li key={place} class={event.status === "refused" || event.kind === "rollback" || event.kind === "watch" ? "bad" : ""}>
                {words(event.kind)}: critic@{event.from_version} to <a href={link(`critics/${event.version}`)}>critic@{event.version}</a>
                {event.status === "refused" && " (refused)"} <span class="muted"><Time at={event.at} /></span>
                {event.reason && <p class="muted">{event.reason}</p>}
              </li>
            ))}
          </ul>
        </details>
      )}
    </>
  );
}

function Versions({ accuracy }: { accuracy: Accuracy }) {
  const cell = (rate: Rate | null) => rate ? <>{percent(rate.value, 1)} <span class="muted small">{percent(rate.low)} to {percent(rate.high)}, {count(rate.answers)}</span></> : <span class="muted">–</span>;
  return (
    <section class="card card-flush" aria-label="Accuracy by version">
      <header class="card-head"><h2>By version, over the whole time</h2></header>
      <div class="table-scroll" tabIndex={0} role="region" aria-label="Accuracy by version, table">
        <table>
          <thead><tr><th>Critic</th><th>Balanced</th><th>Right answers called correct</th><th>Wrong answers called incorrect</th></tr></thead>
          <tbody>
            {[...accuracy.series].reverse().map((one) => (
              <tr key={one.version}>
                <td><a href={link(`critics/${one.version}`)}>critic@{one.version}</a></td>
                <td class="nowrap">{cell(one.total.balanced)}</td>
                <td class="nowrap">{cell(one.total.right)}</td>
                <td class="nowrap">{cell(one.total.wrong)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </section>
  );
}

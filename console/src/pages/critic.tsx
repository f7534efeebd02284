import type { ComponentChildren } from "preact";
import { get } from "../api/client";
import type { Critic, CriticHistory, Rate, Receipt } from "../api/types";
import { count, decimal, percent, plural, short, words } from "../lib/format";
import { useLoaded, useTitle } from "../lib/hooks";
import { link, type Route } from "../router";
import { Badge, Card, Copy, Empty, Facts, Loading, Note, PageHead, Stat, Time } from "../ui/basics";
import { Interval, Reliability } from "../ui/chart";
import { OutcomeBadge, PointerBadge, SwapButtons } from "./critics";

export function CriticPage({ route }: { route: Route }) {
  const version = route.path[1]!;
  useTitle(`critic@${version}`);
  const found = useLoaded(version, (signal) => get<CriticHistory>(`critics/${version}`, {}, signal));
  const all = useLoaded("critics", (signal) => get<Critic[]>("critics", {}, signal));
  const live = all.data?.find((critic) => critic.pointers.includes("live"))?.version;
  const reload = () => {
    found.reload();
    all.reload();
  };
  return (
    <>
      <PageHead
        back={{ href: "#/critics", text: "Critics" }}
        title={<>critic@{version} {found.data?.pointers.map((pointer) => <PointerBadge key={pointer} pointer={pointer} />)}</>}
        lead={found.data && (
          <span class="row">
            {found.data.status === "untrained" ? "The base model under the critic's prompt, which no gate has measured" : <>{found.data.status === "examples" ? `The base model with ${found.data.examples} labelled examples in its prompt` : "Trained"} {found.data.parent !== null && <>from <a href={link(`critics/${found.data.parent}`)}>critic@{found.data.parent}</a></>}</>}
            <Time at={found.data.created_at} />
          </span>
        )}
        actions={found.data && (
          <>
            <a class="button" href={link("traffic", { critic: version })}>Its traffic</a>
            <SwapButtons critic={found.data} live={live} done={reload} />
          </>
        )}
      />
      <Loading of={found} lines={12}>
        {(critic) => (
          <>
            {critic.forgotten && (
              <Note tone="warn" icon="warn" title="It learned from answers that are deleted now">
                {plural(critic.forgotten.answers, "answer")}, deleted since <Time at={critic.forgotten.first_at} />. A run without them makes a critic that never saw them.
              </Note>
            )}
            {critic.archived && <Note tone="warn" icon="warn" title="Archived">It is based on {critic.base_model}, and another model is served.</Note>}
            <Scoreboard critic={critic} />
            {critic.gate && <Gate critic={critic} />}
            <div class="columns">
              {critic.calibration && <Calibration critic={critic} />}
              <Card title="Origin">
                <Facts
                  items={[
                    ["Run", critic.run_id && <a href={link(`runs/${critic.run_id}`)}>{short(critic.run_id)}</a>],
                    ["Parent", critic.parent !== null && <a href={link(`critics/${critic.parent}`)}>critic@{critic.parent}</a>],
                    ["Children", (all.data ?? []).filter((other) => other.parent === critic.version).map((other) => <a key={other.version} href={link(`critics/${other.version}`)}>critic@{other.version} </a>)],
                    ["Base model", critic.base_model],
                    ["Prompts", critic.prompt_set],
                    ["Task", `${critic.task}${critic.task_version ? ` ${critic.task_version}` : ""}`],
                    ["Trained", critic.verdict_only ? "on verdicts only" : critic.status === "trained" ? "on verdicts and rewrites" : null],
                    ["Examples in its prompt", critic.examples ? String(critic.examples) : null],
                    ["Adapter", critic.adapter_sha256 && <span class="row row-tight"><code title={critic.adapter_sha256}>{critic.adapter_sha256.slice(0, 16)}…</code><Copy text={critic.adapter_sha256} label="Copy the hash" /></span>],
                  ]}
                />
                {critic.origin && <details><summary>Pulled from elsewhere</summary><pre class="block" tabIndex={0}>{JSON.stringify(critic.origin, null, 2)}</pre></details>}
              </Card>
            </div>
            <Swaps critic={critic} />
          </>
        )}
      </Loading>
    </>
  );
}

function rateStat(name: string, rate: Rate | null, asShare = true) {
  if (!rate) return <Stat name={name} value="–" detail="not enough labels" />;
  const show = (value: number) => (asShare ? percent(value, 1) : decimal(value));
  return <Stat name={name} value={show(rate.value)} detail={`${show(rate.low)} to ${show(rate.high)}, ${plural(rate.answers, "answer")}`} />;
}

function Scoreboard({ critic }: { critic: CriticHistory }) {
  const board = critic.scoreboard;
  return (
    <Card title="On labelled traffic" note="As callers got its verdicts; 95 % intervals.">
      {!board ? (
        <Empty icon="label" title="None of its answers has a label yet" action={<a class="button button-primary" href="#/label">Label answers</a>} />
      ) : (
        <>
          <dl class="stats">
            {rateStat("Balanced accuracy", board.balanced)}
            {rateStat("Right answers called correct", board.right)}
            {rateStat("Wrong answers called incorrect", board.wrong)}
            {rateStat("AUROC", board.auroc, false)}
            {rateStat("Calibration error", board.calibrated_ece ?? board.ece)}
          </dl>
          {board.threshold && (
            <p class="small muted">
              A verdict threshold at {percent(board.threshold.p_correct, 1)} would judge {percent(board.threshold.balanced.value, 1)} of both classes
              rightly ({percent(board.threshold.balanced.low, 1)} to {percent(board.threshold.balanced.high, 1)}). It changes no verdict.
            </p>
          )}
        </>
      )}
    </Card>
  );
}

interface Axis {
  name: string;
  units: number;
  live: number | null;
  candidate: number | null;
  difference: number;
  low: number;
  high: number;
  gain: number;
  loss: number;
}

export interface GateReport {
  outcome: string;
  reasons: string[];
  numbers: {
    items?: number;
    right?: number;
    wrong?: number;
    questions?: number;
    margin?: number;
    wealth?: number;
    wealth_needed?: number;
    discriminability?: Axis | null;
    helpfulness?: Axis | null;
    utility?: Axis[];
    anchor?: Axis[];
  };
}

const points = (share: number) => `${share >= 0 ? "+" : "−"}${Math.abs(share * 100).toFixed(1)}`;

function Gate({ critic }: { critic: CriticHistory }) {
  return (
    <Card title={<>Gate <OutcomeBadge outcome={critic.outcome} /></>} actions={critic.run_id && <a class="small" href={link(`runs/${critic.run_id}`)}>Its run</a>}>
      <GateBody gate={critic.gate as unknown as GateReport} />
    </Card>
  );
}

export function GateBody({ gate }: { gate: GateReport }) {
  const { numbers } = gate;
  const named: [string, Axis][] = [];
  if (numbers.discriminability) named.push(["Discriminability", numbers.discriminability]);
  if (numbers.helpfulness) named.push(["Helpfulness", numbers.helpfulness]);
  for (const axis of numbers.utility ?? []) named.push([words(axis.name), axis]);
  for (const axis of numbers.anchor ?? []) named.push([words(axis.name), axis]);
  const margin = numbers.margin ?? 0;
  const reach = Math.min(1, Math.max(0.05, margin * 1.4, ...named.flatMap(([, axis]) => [Math.abs(axis.low), Math.abs(axis.high)])) * 1.08);
  const tone = (axis: Axis) => (axis.low > 0 ? "good" : axis.high < 0 ? "bad" : axis.low < -margin ? "warn" : "plain");
  return (
    <>
      {numbers.right !== undefined && (
        <p class="small muted">
          {count(numbers.right)} right and {count(numbers.wrong ?? 0)} wrong held-out answers
          {numbers.wealth !== undefined && numbers.wealth_needed !== undefined && <>; evidence of a gain {decimal(numbers.wealth, 1)}, needed {decimal(numbers.wealth_needed, 1)}</>}.
          Differences are candidate minus live, in points, with a confidence sequence; the dashed line is the margin of loss.
        </p>
      )}
      {named.length > 0 && (
        <div class="stack">
          {named.map(([name, axis]) => (
            <Interval
              key={name} name={name} value={axis.difference} low={axis.low} high={axis.high} scale={[-reach, reach]} margin={-margin} tone={tone(axis)}
              shown={`${points(axis.difference)} [${points(axis.low)}, ${points(axis.high)}]`}
            />
          ))}
        </div>
      )}
      <ul class="reasons">{gate.reasons.map((reason, place) => <li key={place}>{reason}</li>)}</ul>
    </>
  );
}

function Calibration({ critic }: { critic: CriticHistory }) {
  const found = critic.calibration!;
  return (
    <Card title="Calibration" note={`On ${plural(found.items, "held-out judgement")}. On the diagonal, a stated probability can be trusted.`}>
      <Reliability
        label="Reliability of the probability that an answer is right"
        curves={[{ name: `Before: error ${percent(found.before.ece, 1)}`, color: 1, bins: found.before.bins }, { name: `Calibrated: error ${percent(found.after.ece, 1)}`, color: 0, bins: found.after.bins }]}
      />
      <Facts
        items={[
          ["Error, calibrated", `${percent(found.after.ece, 1)} (${percent(found.after.low, 1)} to ${percent(found.after.high, 1)})`],
          ["Right answers in traffic", `${percent(found.class_shares.share, 1)} of ${count(found.class_shares.right + found.class_shares.wrong)} labelled`],
          ["Measured", <Time at={found.created_at} />],
        ]}
      />
    </Card>
  );
}

function Swaps({ critic }: { critic: CriticHistory }) {
  return (
    <Card title="Swaps">
      {critic.swaps.length === 0 ? <p class="muted">It has never been asked to go live.</p> : (
        <ol class="timeline">
          {critic.swaps.map((swap) => (
            <li key={swap.id} class={swap.status === "refused" ? "bad" : swap.status === "pending" ? "warn" : ""}>
              <div class="row">
                <strong>{words(swap.kind)}</strong> critic@{swap.from_version} to critic@{swap.version}
                <Badge tone={swap.status === "done" ? "good" : swap.status === "refused" ? "bad" : "warn"}>{words(swap.status)}</Badge>
                <span class="muted small"><Time at={swap.finished_at ?? swap.requested_at} /></span>
              </div>
              {swap.reason && <p class="muted">{swap.reason}</p>}
              {critic.receipts.filter((receipt) => receipt.swap_id === swap.id).map((receipt) => <ReceiptView key={receipt.replica_id} receipt={receipt} />)}
            </li>
          ))}
        </ol>
      )}
    </Card>
  );
}

interface Proof {
  engine?: string;
  vllm: string;
  probes: number;
  deltas: { tokens: number; from_trainer: number; from_base: number };
  load_s: number;
  probe_s: number;
  proved_by?: string | null;
}

function ReceiptView({ receipt }: { receipt: Receipt }) {
  const details = receipt.details as { engines?: Proof[]; in_flight?: number; lost?: number | null; mixed?: { probes: number; mixed: number } | null; times?: Record<string, string | null> };
  return (
    <details class="small">
      <summary>Receipt of replica {short(receipt.replica_id)}</summary>
      <div class="stack">
        <Facts
          items={[
            ["In flight at the move", details.in_flight === undefined ? null : plural(details.in_flight, "request")],
            ["Lost", details.lost === null || details.lost === undefined ? "not known yet" : plural(details.lost, "request")],
            ["Mixed", details.mixed ? `${details.mixed.mixed} of ${details.mixed.probes} probes` : null],
            ...Object.entries(details.times ?? {}).map(([name, at]): [string, ComponentChildren] => [words(name.replace(/_at$/, "")), at && <Time at={at} absolute />]),
          ]}
        />
        {(details.engines ?? []).map((proof, place) => (
          <Facts
            key={place}
            items={[
              ["Engine", proof.engine ?? `${place + 1}`],
              ["Proof", `${plural(proof.probes, "probe")}, ${plural(proof.deltas.tokens, "token")}`],
              ["From the trainer", `${decimal(proof.deltas.from_trainer, 4)} nats at most`],
              ["From the base model", `${decimal(proof.deltas.from_base, 4)} nats at most`],
              proof.proved_by
                ? ["Proved by", `replica ${short(proof.proved_by)}`]
                : ["Time", `${decimal(proof.load_s, 2)} s to load, ${decimal(proof.probe_s, 2)} s to prove`],
            ]}
          />
        ))}
      </div>
    </details>
  );
}

import { useState } from "preact/hooks";
import { get, post } from "../api/client";
import type { Canary, Critic, State, Swap } from "../api/types";
import { useLoaded, useTitle } from "../lib/hooks";
import { count, duration, percent, words } from "../lib/format";
import { link, type Route } from "../router";
import { Badge, Button, Card, Copy, Loading, Note, PageHead, Stat, TextField, Time } from "../ui/basics";
import { Confirm } from "../ui/dialog";
import { toast } from "../ui/toast";
import { useViewer } from "../viewer";

export function PointerBadge({ pointer }: { pointer: string }) {
  return <Badge tone={pointer === "live" ? "good" : pointer === "candidate" ? "accent" : "plain"}>{words(pointer)}</Badge>;
}

export function OutcomeBadge({ outcome }: { outcome: string | null | undefined }) {
  if (outcome === "promote") return <Badge tone="good" icon="check">Passed the gate</Badge>;
  if (outcome === "reject") return <Badge tone="bad" icon="cross">Rejected</Badge>;
  if (outcome === "not_enough_evidence") return <Badge tone="warn" icon="question">Not enough evidence</Badge>;
  return null;
}

/** Buttons that move the live pointer, with a reason; the service proves the adapter on every engine first. */
export function SwapButtons({ critic, live, done }: { critic: Pick<Critic, "version" | "pointers" | "archived">; live: number | null | undefined; done: () => void }) {
  const [asks, setAsks] = useState<"promote" | "rollback">();
  const [share, setShare] = useState("");
  const { isAdmin } = useViewer();
  if (!isAdmin || critic.archived) return null;
  const isLive = critic.pointers.includes("live");
  const report = (swap: Swap) => {
    toast(swap.status === "done" ? `critic@${swap.version} is live.` : `The swap to critic@${swap.version} is still in progress.`);
    done();
  };
  return (
    <>
      {isLive
        ? critic.version > 0 && <Button kind="danger" icon="undo" onClick={() => setAsks("rollback")}>Roll back</Button>
        : <Button kind="primary" icon="up" onClick={() => setAsks("promote")}>Make live</Button>}
      {asks === "promote" && (
        <Confirm
          title={`Make critic@${critic.version} live?`} action="Make live" kind="primary" reason="optional" onClose={() => setAsks(undefined)}
          run={async (reason) => report(await post<Swap>("admin/promote", { version: critic.version, ...canaryOf(share), ...(reason ? { reason } : {}) }))}
        >
          <p>{live === null || live === undefined ? "It" : `It replaces critic@${live}. It`} answers once every engine has proven that it serves this adapter. If one cannot, nothing changes. This takes up to a minute.</p>
          <TextField
            label="Share of the requests at first, in % (optional)" value={share} onInput={setShare} type="number" inputMode="decimal" placeholder="as the settings say"
            hint="A canary: an episode keeps its critic, and the critic before answers the rest. 0: all requests at once."
          />
        </Confirm>
      )}
      {asks === "rollback" && (
        <Confirm
          title={`Roll back from critic@${critic.version}?`} action="Roll back" reason="optional" onClose={() => setAsks(undefined)}
          run={async (reason) => report(await post<Swap>("admin/rollback", { from_version: critic.version, ...(reason ? { reason } : {}) }))}
        >
          <p>The version that was live before answers again. Requests in flight end on the critic that they began with.</p>
        </Confirm>
      )}
    </>
  );
}

function canaryOf(percentage: string): { canary?: { share: number } } {
  if (!percentage.trim()) return {};
  const value = Number(percentage);
  if (!(value >= 0 && value < 100)) throw new Error("The share must be a number from 0 to less than 100.");
  return { canary: { share: value / 100 } };
}

function left(canary: Canary): { value: string; detail: string } {
  const answers = canary.for_requests === null ? "" : `${count(canary.answers)} of ${count(canary.for_requests)} answers`;
  if (canary.for_s === null) return { value: answers || "–", detail: "then it answers all requests" };
  const seconds = (Date.parse(canary.started_at) - Date.now()) / 1000 + canary.for_s;
  const value = seconds > 0 ? duration(seconds) : "due";
  return { value, detail: answers ? `or earlier: ${answers}` : "then it answers all requests" };
}

/** A promotion that has begun with a share of the requests, and the buttons that end it. */
function RunningCanary({ canary, done }: { canary: Canary; done: () => void }) {
  const [asks, setAsks] = useState<"widen" | "rollback">();
  const { isAdmin } = useViewer();
  const rest = left(canary);
  const finish = (text: string) => {
    toast(text);
    done();
  };
  return (
    <Card
      title={<>Canary <a href={link(`critics/${canary.version}`)}>critic@{canary.version}</a></>}
      note={<>Of the task {canary.task}, since <Time at={canary.started_at} />. An episode keeps the critic that it began with.</>}
      actions={isAdmin && (
        <>
          <Button kind="danger" icon="undo" onClick={() => setAsks("rollback")}>Roll back</Button>
          <Button kind="primary" icon="up" onClick={() => setAsks("widen")}>Widen</Button>
        </>
      )}
    >
      {canary.held && <Note tone="warn" icon="warn" title="It waits for you">{canary.held}</Note>}
      <dl class="stats">
        <Stat name="Share of the requests" value={percent(canary.share)} detail={`critic@${canary.from_version} answers the rest`} />
        <Stat name={`Answers of critic@${canary.version}`} value={count(canary.answers)} detail="stored since it began" />
        <Stat name={`Answers of critic@${canary.from_version}`} value={count(canary.answers_before)} detail="in the same time" />
        <Stat name="Left" value={rest.value} detail={rest.detail} />
      </dl>
      {asks === "widen" && (
        <Confirm
          title={`Let critic@${canary.version} answer all requests?`} action="Widen" kind="primary" reason="optional" onClose={() => setAsks(undefined)}
          run={async (reason) => {
            await post<Canary>("admin/canaries/widen", { version: canary.version, task: canary.task, ...(reason ? { reason } : {}) });
            finish(`critic@${canary.version} answers all requests.`);
          }}
        >
          <p>The canary ends, and critic@{canary.from_version} begins no further episode. Automatic rollback goes on.</p>
        </Confirm>
      )}
      {asks === "rollback" && (
        <Confirm
          title={`Roll back from critic@${canary.version}?`} action="Roll back" reason="optional" onClose={() => setAsks(undefined)}
          run={async (reason) => {
            const swap = await post<Swap>("admin/rollback", { from_version: canary.version, task: canary.task, ...(reason ? { reason } : {}) });
            finish(swap.status === "done" ? `critic@${swap.version} is live.` : `The swap to critic@${swap.version} is still in progress.`);
          }}
        >
          <p>critic@{canary.from_version} answers all requests again. Requests in flight end on the critic that they began with.</p>
        </Confirm>
      )}
    </Card>
  );
}

export function CriticsPage(_: { route: Route }) {
  useTitle("Critics");
  const critics = useLoaded("critics", (signal) => get<Critic[]>("critics", {}, signal), 15_000);
  const state = useLoaded("state", (signal) => get<State>("state", {}, signal), 15_000);
  const { may } = useViewer();
  const canaries = useLoaded("canaries", (signal) => (may("read") ? get<Canary[]>("admin/canaries", {}, signal) : Promise.resolve([])), 15_000);
  const reload = () => {
    critics.reload();
    canaries.reload();
  };
  return (
    <>
      <PageHead title="Critics" lead="Every version, newest first. Versions never change, and their numbers are never used again." />
      {state.data?.watch && <p class="row"><Badge tone="warn" icon="warn">Watch</Badge> Automatic rollback cannot decide: {state.data.watch}</p>}
      {canaries.data?.filter((canary) => !canary.ended_at).map((canary) => <RunningCanary key={canary.swap_id} canary={canary} done={reload} />)}
      <Loading of={critics} lines={8}>
        {(found) => (
          <section class="card card-flush" aria-label="Versions">
            <ul class="items">{found.map((critic) => <Item key={critic.version} critic={critic} all={found} />)}</ul>
          </section>
        )}
      </Loading>
      <Exchange />
    </>
  );
}

function Item({ critic, all }: { critic: Critic; all: Critic[] }) {
  return (
    <li>
      <div class="row">
        <a class="cover" href={link(`critics/${critic.version}`)}>critic@{critic.version}</a>
        {critic.pointers.map((pointer) => <PointerBadge key={pointer} pointer={pointer} />)}
        {critic.archived && <Badge>archived: another base model</Badge>}
        {critic.verdict_only && <Badge tone="warn">verdicts only</Badge>}
      </div>
      <div class="items-meta">
        <span>{critic.status === "untrained" ? "The base model under the critic's prompt" : critic.status === "examples" ? `The base model with ${critic.examples} labelled examples in its prompt` : critic.parent === null ? "Trained" : `Trained from critic@${critic.parent}`}</span>
        {all.filter((other) => other.parent === critic.version).length > 0 && <span>parent of {all.filter((other) => other.parent === critic.version).map((other) => `critic@${other.version}`).join(", ")}</span>}
        <span>{critic.base_model}</span>
        <Time at={critic.created_at} />
      </div>
    </li>
  );
}

function Exchange() {
  const commands: [string, string][] = [
    ["Push a critic to a folder or a bucket", "gadfly critics push 1 s3://bucket/critic"],
    ["Pull a critic from there", "gadfly critics pull s3://bucket/critic"],
  ];
  return (
    <section class="card" aria-label="Push and pull">
      <header class="card-head"><h2>Push and pull</h2></header>
      <p class="card-note">Adapters travel by the command line, because they come from files that this page cannot read.</p>
      {commands.map(([text, command]) => (
        <div key={command} class="row row-between">
          <span>{text}</span>
          <span class="row row-tight"><code class="text">{command}</code><Copy text={command} label={`Copy: ${command}`} /></span>
        </div>
      ))}
    </section>
  );
}

import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { ApiError, get, post, remove } from "../api/client";
import type { Feedback, Progress, Queue, QueueItem, Withdrawn } from "../api/types";
import { plural } from "../lib/format";
import { asError, useKeys, useLoaded, useTitle } from "../lib/hooks";
import { link, navigate, type Route } from "../router";
import { Badge, Button, Card, Empty, ErrorNote, PageHead, Select, Skeleton, TextArea, TextField, Time, Toggle, VerdictBadge } from "../ui/basics";
import { Confidence, Diff, Exchange, Steps } from "../ui/critique";
import { Icon } from "../ui/icons";
import { toast } from "../ui/toast";

const REASONS = {
  conflict: { text: "Votes conflict", tone: "warn" },
  disagreement: { text: "Critics disagree", tone: "accent" },
  contradicted: { text: "A vote contradicts the critic", tone: "warn" },
  uncertain: { text: "Not labelled yet", tone: "accent" },
  new: { text: "Not judged yet", tone: "plain" },
} as const;

const AHEAD = 3;
const RESERVE_S = 300;
const RETRY_MS = 800;

interface Given {
  feedbackId: string;
  item: QueueItem;
  what: "right" | "wrong" | "reference";
}

function labeller(): string {
  const known = sessionStorage.getItem("gadfly-labeller");
  if (known) return known;
  const made = crypto.randomUUID?.() ?? Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16)).join("");
  sessionStorage.setItem("gadfly-labeller", made);
  return made;
}

function newId(): string {
  if (crypto.randomUUID) return crypto.randomUUID(); // only where the page came over TLS or from this computer
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6]! & 0x0f) | 0x40;
  bytes[8] = (bytes[8]! & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}

/** Items of the queue, reserved for this tab, with a few fetched ahead so that the next one is there at once. */
function useQueue(reason: string) {
  const [items, setItems] = useState<QueueItem[]>([]);
  const [waiting, setWaiting] = useState<number>();
  const [error, setError] = useState<Error>();
  const [loading, setLoading] = useState(true);
  const done = useRef(new Set<string>());
  const who = useRef(labeller());
  const asked = useRef(0);

  const fill = useCallback(async (tries = 3) => {
    const mine = ++asked.current;
    try {
      const queue = await post<Queue>("labels/queue", {
        labeller: who.current,
        limit: AHEAD,
        reserve_s: RESERVE_S,
        ...(reason ? { reasons: [reason] } : {}),
      });
      if (mine !== asked.current) return;
      setWaiting(queue.waiting);
      setError(undefined);
      setItems((old) => {
        const fresh = queue.items.filter((item) => !done.current.has(item.interaction_id));
        const kept = old.filter((item) => !done.current.has(item.interaction_id));
        const known = new Set(kept.map((item) => item.interaction_id));
        return [...kept, ...fresh.filter((item) => !known.has(item.interaction_id))];
      });
    } catch (failure) {
      if (mine !== asked.current) return;
      if (failure instanceof ApiError && failure.status === 503 && tries > 0) {
        setTimeout(() => mine === asked.current && void fill(tries - 1), RETRY_MS);
      } else {
        setError(asError(failure));
      }
    } finally {
      if (mine === asked.current) setLoading(false);
    }
  }, [reason]);

  useEffect(() => {
    setItems([]);
    setLoading(true);
    void fill();
    const timer = setInterval(() => document.visibilityState === "visible" && void fill(), 20_000); // renews what is reserved
    const release = () => void post("labels/queue/release", { labeller: who.current }, { keepalive: true }).catch(() => undefined);
    addEventListener("pagehide", release);
    return () => {
      clearInterval(timer);
      removeEventListener("pagehide", release);
      release();
    };
  }, [fill]);

  const take = (item: QueueItem) => {
    done.current.add(item.interaction_id);
    setItems((old) => old.filter((each) => each.interaction_id !== item.interaction_id));
    setWaiting((old) => (old === undefined ? old : Math.max(0, old - 1)));
  };
  const putBack = (item: QueueItem) => {
    done.current.delete(item.interaction_id);
    setItems((old) => [item, ...old.filter((each) => each.interaction_id !== item.interaction_id)]);
    setWaiting((old) => (old === undefined ? old : old + 1));
  };
  return { items, waiting, error, loading, fill, take, putBack, labeller: who.current };
}

export function LabelPage({ route }: { route: Route }) {
  useTitle("Label queue");
  const reason = route.query["reason"] ?? "";
  const queue = useQueue(reason);
  const progress = useLoaded("progress", (signal) => get<Progress>("labels/progress", {}, signal), 30_000);
  const [given, setGiven] = useState<Given[]>([]);
  const [always, setAlways] = useState(() => localStorage.getItem("gadfly-show-critic") === "yes");
  const [shown, setShown] = useState(false);
  const [form, setForm] = useState<"none" | "edit" | "reference">("none");
  const item = queue.items[0];

  useEffect(() => {
    setShown(false);
    setForm("none");
    scrollTo({ top: 0 });
  }, [item?.interaction_id]);

  const give = async (what: Given["what"], body: Record<string, unknown>) => {
    if (!item) return;
    const one = { feedbackId: newId(), item, what };
    queue.take(item);
    setGiven((old) => [one, ...old]);
    try {
      const stored = await post<Feedback>("feedback", { feedback_id: one.feedbackId, interaction_id: item.interaction_id, ...body });
      if (what === "reference" && stored.grade !== "right" && stored.grade !== "wrong") {
        toast(stored.grade_problem ?? "The reference is stored, but no rule can tell whether the answer equals it. Label it by hand.");
        queue.putBack(item);
      } else if (what === "reference") {
        toast(`By this reference the answer is ${stored.grade}.`);
      }
      progress.reload();
      void queue.fill();
    } catch (failure) {
      setGiven((old) => old.filter((each) => each !== one));
      queue.putBack(item);
      toast(`The label was not stored: ${asError(failure).message}`, { tone: "bad" });
    }
  };
  const undo = async (one: Given | undefined) => {
    if (!one) return;
    try {
      const withdrawn = await remove<Withdrawn>(`feedback/${one.feedbackId}`);
      setGiven((old) => old.filter((each) => each !== one));
      queue.putBack(one.item);
      toast(withdrawn.still_frozen ? "Withdrawn. The held-out label was frozen before, and an admin can change it." : "Withdrawn. The answer is back.");
      progress.reload();
    } catch (failure) {
      toast(`It was not withdrawn: ${asError(failure).message}`, { tone: "bad" });
    }
  };
  const skip = async () => {
    if (!item) return;
    queue.take(item);
    try {
      await post(`labels/queue/${item.interaction_id}/skip`, { labeller: queue.labeller });
      void queue.fill();
    } catch (failure) {
      queue.putBack(item);
      toast(`It was not skipped: ${asError(failure).message}`, { tone: "bad" });
    }
  };
  const last = given[0];

  useKeys({
    r: () => void give("right", { correct: true }),
    w: () => void give("wrong", { correct: false }),
    s: () => void skip(),
    u: () => void undo(last),
    e: () => item && setForm(form === "edit" ? "none" : "edit"),
    f: () => item && setForm(form === "reference" ? "none" : "reference"),
    v: () => setShown(!shown),
  });
  const changeAlways = (on: boolean) => {
    setAlways(on);
    localStorage.setItem("gadfly-show-critic", on ? "yes" : "no");
  };

  return (
    <>
      <PageHead
        title="Label queue"
        lead="In turns the answer that teaches the critic most and one from a random sample. Is the answer right?"
        actions={
          <Select
            label="Show" value={reason} onInput={(value) => navigate(link("label", { reason: value }))}
            choices={[["", "All, in turns"], ...Object.entries(REASONS).map(([id, { text }]): [string, string] => [id, text])]}
          />
        }
      />
      <div class="queue">
        <div class="stack">
          {queue.error && <ErrorNote error={queue.error} retry={() => void queue.fill()} />}
          {item ? (
            <article class="card queue-item" aria-label="Answer to label" data-interaction={item.interaction_id}>
              <div class="queue-why">
                <Badge tone={REASONS[item.reason].tone}>{REASONS[item.reason].text}</Badge>
                <span>{always || shown || !saysVerdict(item) ? item.why : "Its critique is hidden until you label."}</span>
              </div>
              <Exchange question={item.question} response={item.response} />
              {always || shown ? <CriticOpinion item={item} /> : (
                <div class="hidden-verdict">
                  <span>The critic's opinion is hidden, so that your label does not follow it.</span>
                  <Button icon="eye" keys="V" onClick={() => setShown(true)}>Show it</Button>
                </div>
              )}
              {form === "edit" && (
                <EditForm item={item} onCancel={() => setForm("none")} onDone={(text, isRight) => void give(isRight ? "right" : "wrong", { correct: isRight, edited_response: text })} />
              )}
              {form === "reference" && (
                <ReferenceForm onCancel={() => setForm("none")} onDone={(reference) => void give("reference", { reference })} />
              )}
              <div class="queue-actions">
                <Button kind="good" icon="check" keys="R" onClick={() => void give("right", { correct: true })}>Right</Button>
                <Button kind="bad" icon="cross" keys="W" onClick={() => void give("wrong", { correct: false })}>Wrong</Button>
                <span class="spacer" />
                <Button kind="quiet" icon="edit" keys="E" aria-pressed={form === "edit"} onClick={() => setForm(form === "edit" ? "none" : "edit")}>Edit</Button>
                <Button kind="quiet" icon="book" keys="F" aria-pressed={form === "reference"} onClick={() => setForm(form === "reference" ? "none" : "reference")}>Reference</Button>
                <Button kind="quiet" icon="skip" keys="S" onClick={() => void skip()}>Skip</Button>
              </div>
            </article>
          ) : queue.loading ? (
            <div class="card"><Skeleton lines={9} /></div>
          ) : !queue.error && (
            <div class="card">
              <Empty
                icon="check" title={reason ? "Nothing of this kind waits" : "Nothing waits for a label"}
                action={reason ? <a class="button" href="#/label">Show everything</a> : <a class="button" href="#/playground">Judge an answer</a>}
              >
                New answers appear here as traffic arrives. Answers that others hold for a few minutes are not shown to you.
              </Empty>
            </div>
          )}
        </div>
        <div class="stack">
          <ProgressCard progress={progress.data} error={progress.error} retry={progress.reload} waiting={queue.waiting} />
          {given.length > 0 && (
            <Card title="Just now" actions={<Button kind="quiet" icon="undo" keys="U" onClick={() => void undo(last)}>Undo</Button>}>
              <ul class="recent">
                {given.slice(0, 6).map((one) => (
                  <li key={one.feedbackId}>
                    <span class={one.what === "wrong" ? "bad-text" : "good-text"}>
                      <Icon name={one.what === "wrong" ? "cross" : one.what === "right" ? "check" : "book"} size={15} />
                      <span class="sr-only">{one.what}: </span>
                    </span>
                    <a class="grow" href={link(`traffic/${one.item.interaction_id}`)} title={one.item.question}>{one.item.question}</a>
                    <Button kind="quiet" icon="undo" aria-label={`Undo ${one.what}: ${one.item.question.slice(0, 60)}`} onClick={() => void undo(one)} />
                  </li>
                ))}
              </ul>
            </Card>
          )}
          <Card title="Keys" class="keys-card">
            <dl class="keys">
              {Object.entries({ R: "right", W: "wrong", E: "edit the answer", F: "give the right answer", S: "skip", U: "undo", V: "show the critic's opinion" }).map(([key, text]) => (
                <>
                  <dt><kbd>{key}</kbd></dt>
                  <dd>{text}</dd>
                </>
              ))}
            </dl>
            <Toggle label="Always show the critic's opinion" checked={always} onChange={changeAlways} />
          </Card>
        </div>
      </div>
    </>
  );
}

function saysVerdict(item: QueueItem): boolean {
  return item.reason !== "conflict" && item.reason !== "new";
}

function CriticOpinion({ item }: { item: QueueItem }) {
  return (
    <section class="stack" aria-label="The critic's opinion">
      <div class="verdict-line">
        <VerdictBadge verdict={item.verdict} />
        <Confidence verdict={item.verdict} confidence={item.confidence} />
        {item.critic && <a class="small" href={link(`critics/${item.critic.version}`)}>critic@{item.critic.version}</a>}
        {item.other_verdict && (
          <span class="row small">
            {item.other_critic === null ? "Another critic" : `critic@${item.other_critic}`}: <VerdictBadge verdict={item.other_verdict} />
          </span>
        )}
      </div>
      {item.steps.length ? <Steps steps={item.steps} /> : item.critique && <p class="text">{item.critique}</p>}
      {item.votes.length > 0 && (
        <ul class="row small">
          {item.votes.map((vote, place) => (
            <li key={place}><Badge tone={vote.correct ? "good" : "bad"} icon={vote.correct ? "check" : "cross"}>{vote.key_name ?? "operator"}</Badge></li>
          ))}
        </ul>
      )}
      <p class="small muted">Judged <Time at={item.created_at} /></p>
    </section>
  );
}

function EditForm({ item, onDone, onCancel }: { item: QueueItem; onDone: (text: string, isRight: boolean) => void; onCancel: () => void }) {
  const [text, setText] = useState(item.response);
  const form = useRef<HTMLFormElement>(null);
  useEffect(() => form.current?.querySelector("textarea")?.focus(), []);
  const changed = text.trim() !== "" && text !== item.response;
  return (
    <form
      ref={form} class="stack" aria-label="Edit"
      onSubmit={(event) => { event.preventDefault(); if (changed) onDone(text, false); }}
      onKeyDown={(event) => {
        if (event.key === "Escape") onCancel();
        if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && changed) onDone(text, false);
      }}
    >
      <TextArea
        label="How the answer should read" value={text} onInput={setText} rows={6}
        hint="If it ends with the answer, as in “The answer is 18”, that becomes the reference of the question."
      />
      {changed && (
        <div class="exchange-part">
          <h2>Change</h2>
          <div class="block"><Diff before={item.response} after={text} /></div>
        </div>
      )}
      <div class="row">
        <Button kind="primary" type="submit" disabled={!changed}>Store, and label wrong</Button>
        <Button disabled={!changed} onClick={() => onDone(text, true)}>Store, and label right</Button>
        <Button kind="quiet" onClick={onCancel}>Cancel</Button>
      </div>
    </form>
  );
}

function ReferenceForm({ onDone, onCancel }: { onDone: (reference: string) => void; onCancel: () => void }) {
  const [text, setText] = useState("");
  const form = useRef<HTMLFormElement>(null);
  useEffect(() => form.current?.querySelector("input")?.focus(), []);
  return (
    <form
      ref={form} class="stack" aria-label="Reference"
      onSubmit={(event) => { event.preventDefault(); if (text.trim()) onDone(text.trim()); }}
      onKeyDown={(event) => event.key === "Escape" && onCancel()}
    >
      <TextField label="The right answer" value={text} onInput={setText} hint="The task's grader compares the answer with it, and that is the label." />
      <div class="row">
        <Button kind="primary" type="submit" disabled={!text.trim()}>Store the reference</Button>
        <Button kind="quiet" onClick={onCancel}>Cancel</Button>
      </div>
    </form>
  );
}

function ProgressCard({ progress, error, retry, waiting }: { progress: Progress | undefined; error: Error | undefined; retry: () => void; waiting: number | undefined }) {
  return (
    <Card title="Progress" actions={waiting === undefined ? undefined : <span class="muted small">{plural(waiting, "answer")} waiting</span>}>
      {error ? <ErrorNote error={error} retry={retry} /> : !progress ? <Skeleton lines={4} /> : (
        <>
          <p>{progress.sentence}</p>
          <Meter name="Right, held-out" have={progress.heldout.right} need={progress.needed.right} />
          <Meter name="Wrong, held-out" have={progress.heldout.wrong} need={progress.needed.wrong} />
          <p class="small muted">
            {plural(progress.labelled_today, "label")} today, {progress.by_you_today} by you. To learn from: {plural(progress.train.right, "question")} with a
            right answer, {progress.train.wrong} with a wrong one.
          </p>
        </>
      )}
    </Card>
  );
}

function Meter({ name, have, need }: { name: string; have: number; need: number }) {
  const whole = have + need;
  return (
    <div class="meter">
      <div class="meter-head">
        <span>{name}</span>
        <span class="number muted">{need > 0 ? `${have} of ${whole} questions` : `${have} questions, enough`}</span>
      </div>
      <div class="meter-track" role="progressbar" aria-label={name} aria-valuenow={have} aria-valuemin={0} aria-valuemax={Math.max(whole, 1)}>
        <span class="meter-fill" style={{ width: `${whole ? (have / whole) * 100 : 0}%` }} />
      </div>
    </div>
  );
}

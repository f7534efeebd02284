import { useState } from "preact/hooks";
import { get, post } from "../api/client";
import type { ActPage, Grading, Key, NewKey, Setting, Task } from "../api/types";
import { short, words } from "../lib/format";
import { asError, useLoaded, useTitle } from "../lib/hooks";
import { link, type Route } from "../router";
import { Badge, Button, Card, Copy, Empty, ErrorNote, Facts, GradeBadge, Loading, Note, PageHead, Select, Tabs, TextArea, TextField, Time } from "../ui/basics";
import { Confirm, Dialog } from "../ui/dialog";
import { ForgetTab } from "./forget";

const TABS = { task: "Tasks", keys: "Keys", settings: "Settings", forget: "Forget", acts: "Acts of admins" } as const;

export function SettingsPage({ route }: { route: Route }) {
  const tab = (route.query["view"] ?? "task") as keyof typeof TABS;
  useTitle(TABS[tab] ?? "Settings");
  return (
    <>
      <PageHead title="Settings" lead="What is in force, and where it came from." />
      <Tabs label="Settings" current={tab} tabs={Object.entries(TABS).map(([id, text]) => ({ id, text, href: link("settings", { view: id }) }))} />
      {tab === "task" && <TasksTab />}
      {tab === "keys" && <KeysTab />}
      {tab === "settings" && <SettingsTab />}
      {tab === "forget" && <ForgetTab />}
      {tab === "acts" && <ActsTab />}
    </>
  );
}

function TasksTab() {
  const found = useLoaded("tasks", (signal) => get<Task[]>("tasks", {}, signal));
  return (
    <Loading of={found}>
      {(tasks) => (
        <div class="columns">
          <div class="stack">{tasks.map((task) => <TaskCard key={task.name} task={task} />)}</div>
          <TryGrader tasks={tasks} />
        </div>
      )}
    </Loading>
  );
}

function TaskCard({ task }: { task: Task }) {
  return (
          <Card title={task.name} note={task.description}>
            <Facts
              items={[
                ["Requests without a task", task.is_default ? "belong to this one" : "belong to another one"],
                ["Live critic", task.live_critic === null ? "not known yet" : `critic@${task.live_critic}`],
                ["Verdict words", `${task.verdict_words.correct}, ${task.verdict_words.incorrect}`],
                ["Version", <span class="row row-tight"><code title={task.version}>{task.version.slice(0, 16)}</code><Copy text={task.version} label="Copy the version" /></span>],
                ["Prompts", task.prompt_set],
                ["Version of the grader", String(task.grader_version)],
              ]}
            />
          </Card>
  );
}

function TryGrader({ tasks }: { tasks: Task[] }) {
  const [task, setTask] = useState(tasks[0]?.name ?? "");
  const [question, setQuestion] = useState("");
  const [response, setResponse] = useState("");
  const [reference, setReference] = useState("");
  const [result, setResult] = useState<Grading>();
  const [error, setError] = useState<Error>();
  const [busy, setBusy] = useState(false);
  const grade = async (event: Event) => {
    event.preventDefault();
    setBusy(true);
    setError(undefined);
    setResult(undefined);
    try {
      setResult(await post<Grading>(`admin/tasks/${encodeURIComponent(task)}/grade`, { response, reference, ...(question.trim() ? { question } : {}) }));
    } catch (failure) {
      setError(asError(failure));
    }
    setBusy(false);
  };
  return (
    <Card title="Try the grader" note="Grades a row as an import or a feedback would, and stores nothing.">
      <form class="stack" onSubmit={(event) => void grade(event)}>
        {tasks.length > 1 && <Select label="Task" value={task} choices={tasks.map(({ name }) => [name, name])} onInput={setTask} />}
        <TextArea label="Question (optional)" value={question} onInput={setQuestion} rows={2} />
        <TextArea label="Answer" value={response} onInput={setResponse} rows={3} required placeholder="… The answer is 18." />
        <TextField label="Reference" value={reference} onInput={setReference} required wide placeholder="18" />
        <div class="row">
          <Button type="submit" kind="primary" busy={busy} disabled={!response.trim() || !reference.trim()}>Grade</Button>
          <span role="status" class="row">
            {result && (result.grade ? <><GradeBadge grade={result.grade} />{result.stated_answer !== null && <span class="muted">The answer states {result.stated_answer}.</span>}</> : <span class="muted">No grade: {result.problem ?? "the reference cannot be read"}</span>)}
          </span>
        </div>
        {error && <ErrorNote error={error} />}
      </form>
    </Card>
  );
}

function KeysTab() {
  const keys = useLoaded("keys", (signal) => get<Key[]>("admin/keys", {}, signal));
  const [making, setMaking] = useState(false);
  const [asks, setAsks] = useState<{ key: Key; what: "revoke" | "distrust" | "trust" }>();
  return (
    <>
      <section class="card card-flush" aria-label="Keys">
        <header class="card-head"><h2>Keys</h2><Button kind="primary" icon="plus" onClick={() => setMaking(true)}>New key</Button></header>
        <Loading of={keys}>
          {(found) => found.length === 0 ? (
            <Empty icon="key" title="No keys">Without keys, only this computer may use the service. The first key should be an admin's: afterwards every request needs one.</Empty>
          ) : (
            <ul class="items">
              {found.map((key) => (
                <li key={key.id}>
                  <div class="row row-between">
                    <span class="row">
                      <strong>{key.name}</strong>
                      {key.tier === "admin" ? <Badge tone="accent">Admin</Badge> : key.scopes.map((scope) => <Badge key={scope}>{words(scope)}</Badge>)}
                      {key.revoked_at && <Badge tone="bad">Revoked</Badge>}
                      {key.distrusted_at && <Badge tone="warn">Its labels do not count</Badge>}
                    </span>
                    {!key.revoked_at && (
                      <span class="row">
                        <Button kind="quiet" onClick={() => setAsks({ key, what: key.distrusted_at ? "trust" : "distrust" })}>{key.distrusted_at ? "Trust" : "Distrust"}</Button>
                        <Button kind="danger" onClick={() => setAsks({ key, what: "revoke" })}>Revoke</Button>
                      </span>
                    )}
                  </div>
                  <div class="items-meta">
                    <code>{key.hint}…</code>
                    <span>made <Time at={key.created_at} /></span>
                    {key.expires_at && <span>expires <Time at={key.expires_at} /></span>}
                    <a href={link("traffic", { key: key.id })}>its traffic</a>
                  </div>
                </li>
              ))}
            </ul>
          )}
        </Loading>
      </section>
      {making && <MakeKey onClose={() => { setMaking(false); keys.reload(); }} />}
      {asks && (
        <Confirm
          title={`${words(asks.what)} the key “${asks.key.name}”?`} action={words(asks.what)} kind={asks.what === "trust" ? "primary" : "danger"} reason="optional"
          onClose={() => setAsks(undefined)}
          run={async (reason) => {
            await post(`admin/keys/${asks.key.id}/${asks.what}`, reason ? { reason } : {});
            keys.reload();
          }}
        >
          <p>
            {asks.what === "revoke" ? "It stops working within seconds, and cannot be used again. Its rows stay."
              : asks.what === "distrust" ? "Its labels count for nothing from now on, also those that it gave before. It keeps working."
              : "Its labels count again."}
          </p>
        </Confirm>
      )}
    </>
  );
}

const KINDS = {
  use: { scopes: ["use"] }, label: { scopes: ["label"] }, read: { scopes: ["read"] }, train: { scopes: ["train"] }, admin: { tier: "admin" },
} as const;

function MakeKey({ onClose }: { onClose: () => void }) {
  const [name, setName] = useState("");
  const [kind, setKind] = useState<keyof typeof KINDS>("use");
  const [days, setDays] = useState("");
  const [made, setMade] = useState<NewKey>();
  const [error, setError] = useState<Error>();
  const [busy, setBusy] = useState(false);
  const make = async () => {
    setBusy(true);
    setError(undefined);
    try {
      setMade(await post<NewKey>("admin/keys", { name: name.trim(), ...KINDS[kind], ...(days ? { expires_in_days: Number(days) } : {}) }));
    } catch (failure) {
      setError(asError(failure));
    }
    setBusy(false);
  };
  return (
    <Dialog
      title={made ? "The new key" : "New key"} onClose={onClose}
      actions={made ? <Button kind="primary" onClick={onClose}>Done</Button> : (
        <>
          <Button onClick={onClose}>Cancel</Button>
          <Button kind="primary" busy={busy} disabled={!name.trim()} onClick={() => void make()}>Make the key</Button>
        </>
      )}
    >
      {made ? (
        <>
          <Note tone="warn" icon="key" title="Copy it now">Only its digest is stored, so it is shown this once.</Note>
          <div class="block row row-between"><code>{made.secret}</code><Copy text={made.secret} label="Copy the key" /></div>
        </>
      ) : (
        <div class="stack">
          <TextField label="Name" value={name} onInput={setName} placeholder="Who or what uses it" required />
          <Select
            label="What it may do" value={kind} onInput={(chosen) => setKind(chosen as keyof typeof KINDS)}
            choices={[
              ["use", "Use: uses the service, sees its own rows"],
              ["label", "Label: labels the answers of all callers"],
              ["read", "Read: reads all traffic, labels, runs and critics"],
              ["train", "Train: plans, starts and follows training runs"],
              ["admin", "Admin: sees and does everything"],
            ]}
          />
          <TextField label="Expires after, in days (optional)" type="number" value={days} onInput={setDays} inputMode="numeric" />
          {error && <ErrorNote error={error} />}
        </div>
      )}
    </Dialog>
  );
}

function SettingsTab() {
  const found = useLoaded("settings", (signal) => get<Setting[]>("admin/settings", {}, signal));
  const [text, setText] = useState("");
  const [onlySet, setOnlySet] = useState(false);
  return (
    <Loading of={found} lines={12}>
      {(list) => {
        const wanted = text.toLowerCase();
        const items = list.filter((item) => (!onlySet || !item.is_default) && `${item.name} ${item.description}`.toLowerCase().includes(wanted));
        return (
          <>
            <div class="filters">
              <div class="search"><TextField label="Find a setting" type="search" value={text} onInput={setText} /></div>
              <Select label="Source" value={onlySet ? "set" : ""} onInput={(value) => setOnlySet(value === "set")} choices={[["", "All"], ["set", "Set by the operator"]]} />
            </div>
            <section class="card card-flush" aria-label="Settings in force">
              {items.length === 0 ? <Empty icon="search" title="No setting matches" /> : (
                <ul class="items">
                  {items.map((item) => (
                    <li key={item.name}>
                      <div class="row"><code><strong>GADFLY_{item.name.toUpperCase()}</strong></code>{!item.is_default && <Badge tone="accent">Set</Badge>}</div>
                      <p><code class="text">{item.value === null || item.value === "" ? "(empty)" : typeof item.value === "object" ? JSON.stringify(item.value) : String(item.value)}</code></p>
                      <p class="items-text">{item.description}</p>
                    </li>
                  ))}
                </ul>
              )}
            </section>
          </>
        );
      }}
    </Loading>
  );
}

function ActsTab() {
  const found = useLoaded("acts", (signal) => get<ActPage>("admin/acts", { limit: 100 }, signal));
  return (
    <Loading of={found}>
      {(page) => page.items.length === 0 ? (
        <div class="card"><Empty icon="book" title="No acts yet">Decisions about labels, keys and critics are recorded here, with their reasons.</Empty></div>
      ) : (
        <Card title="Acts of admins">
          <ol class="timeline">
            {page.items.map((act) => (
              <li key={act.id}>
                <strong>{words(act.action)}</strong> <span class="mono small">{act.subject}</span> <span class="muted small">by {act.key_id ? short(act.key_id) : "the operator"}, <Time at={act.at} /></span>
                {act.reason && <p class="muted">{act.reason}</p>}
              </li>
            ))}
          </ol>
        </Card>
      )}
    </Loading>
  );
}

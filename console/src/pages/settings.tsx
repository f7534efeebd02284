import { useState } from "preact/hooks";
import { get, post } from "../api/client";
import type { ActPage, Grading, Setting, Task } from "../api/types";
import { short, words } from "../lib/format";
import { asError, useLoaded, useTitle } from "../lib/hooks";
import { link, type Route } from "../router";
import { Badge, Button, Card, Copy, Empty, ErrorNote, Facts, GradeBadge, Loading, PageHead, Select, Tabs, TextArea, TextField, Time } from "../ui/basics";
import { ForgetTab } from "./forget";
import { KeysTab } from "./keys";
import { WebhooksTab } from "./webhooks";

const TABS = { task: "Tasks", keys: "Keys", webhooks: "Webhooks", settings: "Settings", forget: "Forget", acts: "Acts of admins" } as const;

export function SettingsPage({ route }: { route: Route }) {
  const tab = (route.query["view"] ?? "task") as keyof typeof TABS;
  useTitle(TABS[tab] ?? "Settings");
  return (
    <>
      <PageHead title="Settings" lead="What is in force, and where it came from." />
      <Tabs label="Settings" current={tab} tabs={Object.entries(TABS).map(([id, text]) => ({ id, text, href: link("settings", { view: id }) }))} />
      {tab === "task" && <TasksTab />}
      {tab === "keys" && <KeysTab />}
      {tab === "webhooks" && <WebhooksTab query={route.query} />}
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

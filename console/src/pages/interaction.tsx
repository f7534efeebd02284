import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import { ApiError, get, post, remove } from "../api/client";
import type { Critic, CritiqueResult, Forgotten, Interaction, InteractionPage as Page, Label, Learning, RefineResult } from "../api/types";
import { decimal, milliseconds, percent, short, words } from "../lib/format";
import { asError, useLoaded, useTitle } from "../lib/hooks";
import { link, navigate, type Route } from "../router";
import { Badge, Button, Card, Copy, ErrorNote, Facts, GradeBadge, LabelBadge, Loading, PageHead, Select, Time, VerdictBadge, type Choice } from "../ui/basics";
import { CritiqueBody, Diff, Exchange } from "../ui/critique";
import { Confirm } from "../ui/dialog";
import { toast } from "../ui/toast";
import { useViewer } from "../viewer";
import { Consequences, forgetAll } from "./forget";

export function InteractionPage({ route }: { route: Route }) {
  const id = route.path[1]!;
  useTitle("Interaction");
  const { isAdmin, may } = useViewer();
  const found = useLoaded(id, (signal) => get<Interaction>(`interactions/${id}`, {}, signal));
  const [deleting, setDeleting] = useState(false);
  return (
    <>
      <PageHead
        back={{ href: "#/traffic", text: "Traffic" }}
        title="Interaction"
        lead={found.data && <span class="row"><Time at={found.data.created_at} absolute /><span class="mono small">{id}</span><Copy text={id} label="Copy the id" /></span>}
        actions={found.data && (
          <>
            {found.data.response !== null && (
              <a class="button" href={link("playground", { question: found.data.question, response: found.data.response, reference: found.data.reference })}>Open in playground</a>
            )}
            {may("use") && <Button kind="danger" icon="trash" onClick={() => setDeleting(true)}>Delete</Button>}
          </>
        )}
      />
      <Loading of={found} lines={14}>
        {(item) => (
          <div class="split">
            <div class="stack">
              <Card label="Question and answer"><Exchange question={item.question} response={item.response} /></Card>
              {item.result && (item.result.kind === "refine" ? <Refined result={item.result} response={item.response ?? ""} /> : <Critiqued result={item.result} />)}
              {item.response !== null && may("use") && <Replay item={item} />}
              {item.conversation && <Card title="Conversation"><pre class="block" tabIndex={0}>{JSON.stringify(item.conversation, null, 2)}</pre></Card>}
            </div>
            <div class="stack">
              <Labelled item={item} reload={found.reload} />
              {may("read") && <Learned id={item.id} />}
              <Card title="Facts">
                <Facts
                  items={[
                    ["Kind", words(item.kind)],
                    ["Task", item.task],
                    ["Critic", item.critic && <a href={link(`critics/${item.critic.version}`)}>critic@{item.critic.version}</a>],
                    ["Reference", item.reference && <span class="text">{item.reference}</span>],
                    ["Grade", item.grade && <GradeBadge grade={item.grade} />],
                    ["Latency", item.result && milliseconds(item.result.latency_ms)],
                    ["Tokens", item.result && `${item.result.usage.prompt_tokens} read, ${item.result.usage.completion_tokens} written`],
                    ["Prompts", item.result?.prompt_set],
                    ["Request id", item.request_id && <span class="mono">{item.request_id}</span>],
                  ]}
                />
                {Object.keys(item.metadata).length > 0 && <details><summary>Metadata</summary><pre class="block" tabIndex={0}>{JSON.stringify(item.metadata, null, 2)}</pre></details>}
                <details><summary>Parameters</summary><pre class="block" tabIndex={0}>{JSON.stringify(item.parameters, null, 2)}</pre></details>
              </Card>
              <Episode item={item} />
            </div>
          </div>
        )}
      </Loading>
      {deleting && (
        <Confirm
          title="Delete this interaction?" action="Delete" {...(isAdmin ? { reason: "optional" as const } : {})} onClose={() => setDeleting(false)}
          run={async (reason) => {
            if (isAdmin) await forgetAll({ interaction_id: id }, reason);
            else await remove(`interactions/${id}`);
            toast("The interaction is deleted.");
            navigate("#/traffic");
          }}
        >
          <p>Its texts, critiques, rewrites and feedback are removed for good. A critic that learned from it keeps what it learned, and is marked.</p>
          {isAdmin && <Learners id={id} />}
        </Confirm>
      )}
    </>
  );
}

function Learners({ id }: { id: string }) {
  const found = useLoaded(`forget ${id}`, () => post<Forgotten>("admin/forget", { interaction_id: id, dry_run: true }));
  return <Loading of={found} lines={2}>{(result) => <Consequences found={result} />}</Loading>;
}

function Critiqued({ result }: { result: CritiqueResult }) {
  const [place, setPlace] = useState(0);
  const shown = result.critiques[place]!;
  return (
    <Card
      title="Critique"
      actions={result.critiques.length > 1 && (
        <Select
          label="Sample" value={String(place)} onInput={(value) => setPlace(Number(value))}
          choices={result.critiques.map((critique, each): Choice => [String(each), `${each + 1}: ${critique.verdict}`])}
        />
      )}
      note={result.critiques.length > 1 && <>Of {result.critiques.length} samples, the majority says <VerdictBadge verdict={result.verdict} />.</>}
    >
      <CritiqueBody critique={shown} />
    </Card>
  );
}

function Refined({ result, response }: { result: RefineResult; response: string }) {
  let before = response;
  return (
    <>
      {result.rounds.map((round) => {
        const from = before;
        before = round.refinement?.text ?? before;
        return (
          <Card key={round.critique.id} title={result.rounds.length > 1 ? `Round ${round.critique.round + 1}` : "Critique and rewrite"}>
            <CritiqueBody critique={round.critique} />
            {round.refinement ? (
              <div class="exchange-part">
                <h3 class="row">Rewrite <GradeBadge grade={round.refinement.grade} /></h3>
                <div class="block"><Diff before={from} after={round.refinement.text} /></div>
              </div>
            ) : <p class="muted">Judged correct, so it was not rewritten.</p>}
          </Card>
        );
      })}
    </>
  );
}

function Labelled({ item, reload }: { item: Interaction; reload: () => void }) {
  const { isAdmin, may } = useViewer();
  const votes = useLoaded(`votes ${item.id} ${item.feedback.length}`, async (signal) => {
    if (!may("read")) return null;
    try {
      return await get<Label>(`admin/labels/${item.id}`, {}, signal);
    } catch (error) {
      if (error instanceof ApiError && error.status === 404) return null;
      throw error;
    }
  });
  const [deciding, setDeciding] = useState<"right" | "wrong" | "none" | "votes">();
  const vote = async (correct: boolean) => {
    try {
      await post("feedback", { interaction_id: item.id, correct });
      toast(`Labelled ${correct ? "right" : "wrong"}.`);
      reload();
    } catch (failure) {
      toast(`The label was not stored: ${asError(failure).message}`, { tone: "bad" });
    }
  };
  const label = votes.data;
  return (
    <Card title={<>Label <LabelBadge label={item.label} standing={item.standing} /></>}>
      {item.response !== null && (
        <div class="row">
          <Button kind="good" icon="check" onClick={() => void vote(true)}>Right</Button>
          <Button kind="bad" icon="cross" onClick={() => void vote(false)}>Wrong</Button>
        </div>
      )}
      {votes.error && <ErrorNote error={votes.error} retry={votes.reload} />}
      {label && (
        <Facts
          items={[
            ["Side", label.split === "heldout" ? "Held-out: measures critics" : "Train: critics learn from it"],
            ["Source", label.source && words(label.source)],
            ["Decided by admin", label.decided && words(label.decided)],
            ["Frozen", label.frozen_at && <Time at={label.frozen_at} />],
          ]}
        />
      )}
      {label && label.votes.length > 0 && (
        <div>
          <h3>Votes</h3>
          <Facts items={label.votes.map((each): [string, ComponentChildren] => [
            each.key_name ?? (each.key_id ? short(each.key_id) : "operator"),
            <span class="row"><LabelBadge label={each.correct ? "right" : "wrong"} /><span class="muted small">{words(each.source)}</span></span>,
          ])} />
        </div>
      )}
      {item.feedback.length > 0 && (
        <details>
          <summary>{item.feedback.length} feedback</summary>
          <ul class="stack small">
            {item.feedback.map((each) => (
              <li key={each.id} class="stack">
                <div class="row">
                  {each.correct !== null && <LabelBadge label={each.correct ? "right" : "wrong"} />}
                  {each.rating !== null && <Badge>{each.rating} of 5</Badge>}
                  {each.reference && <Badge>reference {each.reference}</Badge>}
                  <Time at={each.created_at} />
                </div>
                {each.comment && <p class="text">{each.comment}</p>}
                {each.edited_response && <div class="block"><Diff before={item.response ?? ""} after={each.edited_response} /></div>}
              </li>
            ))}
          </ul>
        </details>
      )}
      {isAdmin && item.response !== null && (
        <Select
          label="Decide as admin" value="" onInput={(value) => value && setDeciding(value as "right")}
          choices={[["", "Choose a label…"], ["right", "Right"], ["wrong", "Wrong"], ["none", "It cannot be judged"], ["votes", "Let the votes decide"]]}
          hint="Counts more than all votes, and is recorded."
        />
      )}
      {deciding && (
        <Confirm
          title="Decide the label?" action="Decide" kind="primary" reason="optional" onClose={() => setDeciding(undefined)}
          run={async (reason) => {
            await post(`admin/labels/${item.id}`, { label: deciding, ...(reason ? { reason } : {}) });
            votes.reload();
            reload();
          }}
        >
          <p>{deciding === "votes" ? "An earlier decision ends, and the votes count again." : deciding === "none" ? "The answer gets no label." : `The answer is labelled ${deciding} for all interactions with the same text.`}</p>
        </Confirm>
      )}
    </Card>
  );
}

function Learned({ id }: { id: string }) {
  const found = useLoaded(`learning ${id}`, (signal) => get<Learning>(`admin/interactions/${id}/learning`, {}, signal));
  return (
    <Card title="Learned from">
      <Loading of={found} lines={2}>
        {(learning) => learning.entries.length === 0 && learning.selected_by.length === 0 ? (
          <p class="muted">No run has learned from this answer.</p>
        ) : (
          <>
            {learning.entries.map((entry) => (
              <div key={`${entry.run_id} ${entry.stage} ${entry.refinement_id}`}>
                <div class="row">
                  <a href={link(`runs/${entry.run_id}`)}>Run {short(entry.run_id)}</a>
                  <Badge>{words(entry.stage)}</Badge>
                  {entry.version !== null && <a href={link(`critics/${entry.version}`)}>critic@{entry.version}</a>}
                </div>
                <Facts
                  items={[
                    ["Drawn", `${entry.draws} times, steps ${entry.first_step} to ${entry.last_step}`],
                    ["Critiques", `${entry.critiques}, ${percent(entry.verdict_right)} with the right verdict`],
                    ["Mean reward", decimal(entry.mean_score)],
                  ]}
                />
              </div>
            ))}
            {learning.selected_by.length > 0 && (
              <p class="small muted">
                Selected by runs of earlier releases: {learning.selected_by.map((run) => <a key={run} href={link(`runs/${run}`)}>{short(run)} </a>)}
              </p>
            )}
          </>
        )}
      </Loading>
    </Card>
  );
}

function Replay({ item }: { item: Interaction }) {
  const critics = useLoaded("critics", (signal) => get<Critic[]>("critics", {}, signal));
  const [critic, setCritic] = useState("live");
  const [busy, setBusy] = useState(false);
  const [result, setResult] = useState<CritiqueResult>();
  const [error, setError] = useState<Error>();
  const replay = async () => {
    setBusy(true);
    setError(undefined);
    try {
      setResult(await post<CritiqueResult>(`interactions/${item.id}/replay`, { critic: critic === "live" ? critic : Number(critic) }));
    } catch (failure) {
      setError(asError(failure));
    } finally {
      setBusy(false);
    }
  };
  return (
    <Card title="Replay" note="How another version judges this answer now. Nothing is stored.">
      <div class="filters">
        <Select
          label="Critic" value={critic} onInput={setCritic}
          choices={[["live", "Live critic"], ...(critics.data ?? []).filter((each) => !each.archived).map((each): Choice => [String(each.version), `critic@${each.version}`])]}
        />
        <Button icon="swap" busy={busy} onClick={() => void replay()}>Judge again</Button>
      </div>
      {error && <ErrorNote error={error} />}
      {result && (
        <div class="stack">
          <p class="row">
            <strong>critic@{result.critic.version}</strong>
            {item.verdict && (result.verdict === item.verdict
              ? <Badge>same verdict as before</Badge>
              : <Badge tone="accent" icon="swap">before: {item.verdict}</Badge>)}
          </p>
          <CritiqueBody critique={result.critiques[0]!} />
        </div>
      )}
    </Card>
  );
}

function Episode({ item }: { item: Interaction }) {
  const found = useLoaded(`episode ${item.episode_id}`, (signal) => get<Page>("interactions", { episode_id: item.episode_id, limit: 20 }, signal));
  const others = found.data?.items ?? [];
  if (others.length < 2) return null;
  return (
    <Card title="Episode" actions={<a class="small" href={link("traffic", { episode: item.episode_id })}>All in traffic</a>}>
      <ol class="timeline">
        {[...others].reverse().map((each) => (
          <li key={each.id} class={each.id === item.id ? "" : "plain"}>
            {each.id === item.id ? <strong>This one</strong> : <a href={link(`traffic/${each.id}`)}>{words(each.kind)}</a>}{" "}
            {each.verdict && <VerdictBadge verdict={each.verdict} />} <span class="muted small"><Time at={each.created_at} /></span>
          </li>
        ))}
      </ol>
    </Card>
  );
}

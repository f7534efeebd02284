import { useState } from "preact/hooks";
import { get, post } from "../api/client";
import type { Forgotten, Key, Retention } from "../api/types";
import { count, plural, short, words } from "../lib/format";
import { asError, useLoaded } from "../lib/hooks";
import { link } from "../router";
import { Button, Card, ErrorNote, Loading, Note, Select, TextField, Time, type Choice } from "../ui/basics";
import { Confirm } from "../ui/dialog";
import { toast } from "../ui/toast";

/** Deletes until nothing is left: one call deletes a limited number of rows. */
export async function forgetAll(what: Record<string, unknown>, reason: string): Promise<number> {
  let deleted = 0;
  for (;;) {
    const done = await post<Forgotten>("admin/forget", { ...what, ...(reason ? { reason } : {}) });
    deleted += done.interactions;
    if (!done.remaining || done.interactions === 0) return deleted;
  }
}

/** What a deletion would remove, and which critics learned from it. */
export function Consequences({ found }: { found: Forgotten }) {
  return (
    <div class="stack">
      <p><strong>{plural(found.interactions, "interaction")}</strong> and {count(found.feedback)} feedback{found.remaining && ", and more in further steps"}.</p>
      {found.critics.length > 0 && (
        <p>
          Learned by {found.critics.map((critic, place) => (
            <span key={critic.version}>{place > 0 && ", "}<a href={link(`critics/${critic.version}`)}>critic@{critic.version}</a></span>
          ))}; these are marked.
        </p>
      )}
      <p class="muted">{found.advice}</p>
    </div>
  );
}

export function ForgetTab() {
  const keys = useLoaded("keys", (signal) => get<Key[]>("admin/keys", {}, signal));
  const retention = useLoaded("retention", (signal) => get<Retention>("admin/retention", {}, signal));
  const [what, setWhat] = useState("key");
  const [key, setKey] = useState("");
  const [since, setSince] = useState("");
  const [until, setUntil] = useState("");
  const [episode, setEpisode] = useState("");
  const [kind, setKind] = useState("");
  const [found, setFound] = useState<{ of: string; result: Forgotten }>();
  const [error, setError] = useState<Error>();
  const [busy, setBusy] = useState(false);
  const [asks, setAsks] = useState(false);
  const moment = (text: string) => (text ? new Date(text).toISOString() : undefined);
  const body = {
    ...(what === "key" ? { key_id: key } : what === "episode" ? { episode_id: episode.trim() } : { since: moment(since), until: moment(until) }),
    ...(kind ? { kind } : {}),
  };
  const current = JSON.stringify(body);
  const complete = what === "key" ? key : what === "episode" ? episode.trim() : since && until;
  const look = async () => {
    setBusy(true);
    setError(undefined);
    try {
      setFound({ of: current, result: await post<Forgotten>("admin/forget", { ...body, dry_run: true }) });
    } catch (failure) {
      setError(asError(failure));
    }
    setBusy(false);
  };
  const looked = found?.of === current ? found.result : undefined;
  return (
    <div class="columns">
      <Card title="Forget" note="Removes rows with their texts, critiques, rewrites and feedback, also from spool and run folders, and marks the critics that learned from them.">
        <Select label="What" value={what} onInput={setWhat} choices={[["key", "All rows of a caller"], ["span", "A time span"], ["episode", "An episode"]]} />
        {what === "key" && <Select label="Caller" value={key} onInput={setKey} choices={[["", "Choose a key…"], ...(keys.data ?? []).map((each): Choice => [each.id, `${each.name} (${short(each.id)})`])]} />}
        {what === "episode" && <TextField label="Episode" value={episode} onInput={setEpisode} placeholder="its id" />}
        {what === "span" && (
          <div class="form">
            <TextField label="From" type="datetime-local" value={since} onInput={setSince} />
            <TextField label="Until" type="datetime-local" value={until} onInput={setUntil} />
          </div>
        )}
        <Select label="Kind" value={kind} onInput={setKind} choices={[["", "All kinds"], ...["critique", "refine", "chat", "import"].map((each): Choice => [each, words(each)])]} />
        {error && <ErrorNote error={error} />}
        {looked && <Note tone="warn" icon="trash" title="This would be removed"><Consequences found={looked} /></Note>}
        <div class="row">
          <Button busy={busy} kind={looked ? undefined : "primary"} disabled={!complete} onClick={() => void look()}>Dry run</Button>
          <Button kind="danger" icon="trash" disabled={!looked || looked.interactions === 0} onClick={() => setAsks(true)}>Forget</Button>
        </div>
      </Card>
      <Card title="Retention" note="What the settings delete every day, by age.">
        <Loading of={retention} lines={3}>
          {(page) => page.rules.length === 0 ? <p class="muted">No setting limits the age of rows: everything is kept.</p> : (
            <div class="table-scroll" tabIndex={0} role="region" aria-label="Retention">
              <table>
                <thead><tr><th>Kind</th><th class="number">Kept, days</th><th class="number">Due, rows</th><th>Oldest</th></tr></thead>
                <tbody>
                  {page.rules.map((rule) => (
                    <tr key={rule.kind}>
                      <td>{words(rule.kind)}</td>
                      <td class="number">{rule.days}</td>
                      <td class="number">{count(rule.due)}</td>
                      <td>{rule.oldest && <Time at={rule.oldest} />}</td>
                    </tr>
                  ))}
                </tbody>
              </table>
            </div>
          )}
        </Loading>
      </Card>
      {asks && looked && (
        <Confirm
          title={`Forget ${plural(looked.interactions, "interaction")}?`} action="Forget" reason="optional" onClose={() => setAsks(false)}
          run={async (reason) => {
            const deleted = await forgetAll(body, reason);
            setFound(undefined);
            toast(`${plural(deleted, "interaction")} removed.`);
          }}
        >
          <p>They cannot be brought back. A repeat that arrives late does not bring them back either.</p>
        </Confirm>
      )}
    </div>
  );
}

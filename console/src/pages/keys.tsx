import { useState } from "preact/hooks";
import { get, patch, post } from "../api/client";
import type { Key, KeyChange, NewKey, Scope } from "../api/types";
import { count, words } from "../lib/format";
import { asError, useLoaded, useSending } from "../lib/hooks";
import { link } from "../router";
import { Badge, Button, Checks, Empty, ErrorNote, Loading, Secret, Select, TextField, Time } from "../ui/basics";
import { Confirm, Dialog } from "../ui/dialog";
import { toast } from "../ui/toast";

type Limit = "requests_per_minute" | "engine_calls_per_minute" | "tokens_per_day" | "max_in_flight";
type Texts = Record<Limit, string>;

const LIMITS: [name: Limit, label: string, shown: string, hint: string][] = [
  ["requests_per_minute", "Requests a minute", "requests a minute", "Of any kind, in each worker."],
  ["engine_calls_per_minute", "Engine calls a minute", "engine calls a minute", "2 for a critique, 3 for each round of a refinement."],
  ["tokens_per_day", "Tokens a day", "tokens a day", "Prompt and completion, since midnight UTC."],
  ["max_in_flight", "Requests in flight", "in flight", "Requests that generate at once, in each worker."],
];
const UNLIMITED = "no limits";
const NO_LIMITS: Texts = { requests_per_minute: "", engine_calls_per_minute: "", tokens_per_day: "", max_in_flight: "" };

const SCOPES: [Scope, string, string][] = [
  ["use", "Use", "the service: judge, rewrite, and see its own rows"],
  ["label", "Label", "the answers of all callers"],
  ["read", "Read", "all traffic, labels, runs and critics"],
  ["train", "Train", "plan, start and follow training runs"],
];

export function KeysTab() {
  const keys = useLoaded("keys", (signal) => get<Key[]>("admin/keys", {}, signal));
  const [making, setMaking] = useState(false);
  const [limiting, setLimiting] = useState<Key>();
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
                        {(key.tier === "caller" || shownLimits(key) !== UNLIMITED) && <Button onClick={() => setLimiting(key)}>Limits</Button>}
                        <Button onClick={() => setAsks({ key, what: key.distrusted_at ? "trust" : "distrust" })}>{key.distrusted_at ? "Trust" : "Distrust"}</Button>
                        <Button kind="danger" onClick={() => setAsks({ key, what: "revoke" })}>Revoke</Button>
                      </span>
                    )}
                  </div>
                  <div class="items-meta">
                    <code>{key.hint}…</code>
                    <span>made <Time at={key.created_at} /></span>
                    {key.expires_at && <span>expires <Time at={key.expires_at} /></span>}
                    <span>{shownLimits(key)}</span>
                    <a href={link("traffic", { key: key.id })}>its traffic</a>
                  </div>
                </li>
              ))}
            </ul>
          )}
        </Loading>
      </section>
      {making && <MakeKey onClose={() => { setMaking(false); keys.reload(); }} />}
      {limiting && <LimitKey of={limiting} onClose={() => setLimiting(undefined)} done={keys.reload} />}
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

function shownLimits(key: Key): string {
  const set = LIMITS.filter(([name]) => typeof key[name] === "number").map(([name, , shown]) => `${count(key[name]!)} ${shown}`);
  return set.length ? `at most ${set.join(", ")}` : UNLIMITED;
}

/** The limits that are stated, null for an empty field; throws for a text that is not a whole number. */
function readLimits(texts: Texts): Record<Limit, number | null> {
  const read = LIMITS.map(([name, label]) => {
    const text = texts[name].replace(/\s/g, "");
    if (text && !/^[1-9]\d*$/.test(text)) throw new Error(`${label}: give a whole number of at least 1, or leave it empty for no limit.`);
    return [name, text ? Number(text) : null];
  });
  return Object.fromEntries(read) as Record<Limit, number | null>;
}

function LimitFields({ texts, onInput }: { texts: Texts; onInput: (texts: Texts) => void }) {
  return (
    <div class="form">
      {LIMITS.map(([name, label, , hint]) => (
        <TextField
          key={name} label={label} value={texts[name]} onInput={(text) => onInput({ ...texts, [name]: text })} inputMode="numeric"
          placeholder="no limit" hint={hint}
        />
      ))}
    </div>
  );
}

function LimitKey({ of, onClose, done }: { of: Key; onClose: () => void; done: () => void }) {
  const before = Object.fromEntries(LIMITS.map(([name]) => [name, of[name] === null ? "" : String(of[name])])) as Texts;
  const [texts, setTexts] = useState(before);
  const [reason, setReason] = useState("");
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<Error>();
  const changed = LIMITS.filter(([name]) => texts[name].trim() !== before[name]).map(([name]) => name);
  const save = async (event: Event) => {
    event.preventDefault();
    setBusy(true);
    setError(undefined);
    try {
      const limits = readLimits(texts);
      const body: KeyChange = Object.fromEntries(changed.map((name) => [name, limits[name]]));
      await patch<Key>(`admin/keys/${of.id}`, { ...body, ...(reason.trim() ? { reason: reason.trim() } : {}) });
      toast(`The limits of “${of.name}” are stored.`);
      done();
      onClose();
    } catch (failure) {
      setError(asError(failure));
      setBusy(false);
    }
  };
  return (
    <Dialog title={`Limits of the key “${of.name}”`} onClose={onClose}>
      <form class="stack" onSubmit={(event) => void save(event)}>
        <p class="muted">A request over a limit is answered with status 429 and the time to wait. An empty field is no limit.</p>
        <LimitFields texts={texts} onInput={setTexts} />
        <TextField label="Reason (optional)" value={reason} onInput={setReason} wide hint="Stored with the act, for later readers." />
        {error && <ErrorNote error={error} />}
        <div class="dialog-actions">
          <Button onClick={onClose}>Cancel</Button>
          <Button type="submit" kind="primary" busy={busy} disabled={changed.length === 0}>Store</Button>
        </div>
      </form>
    </Dialog>
  );
}

function MakeKey({ onClose }: { onClose: () => void }) {
  const [name, setName] = useState("");
  const [tier, setTier] = useState<"caller" | "admin">("caller");
  const [scopes, setScopes] = useState<Scope[]>(["use"]);
  const [days, setDays] = useState("");
  const [texts, setTexts] = useState(NO_LIMITS);
  const { sent: made, error, busy, run: make } = useSending(() => {
    const rights = tier === "admin" ? { tier } : { scopes, ...readLimits(texts) };
    return post<NewKey>("admin/keys", { name: name.trim(), ...rights, ...(days ? { expires_in_days: Number(days) } : {}) });
  });
  return (
    <Dialog
      title={made ? "The new key" : "New key"} stays={made !== undefined} onClose={onClose}
      actions={made ? <Button kind="primary" onClick={onClose}>Done</Button> : (
        <>
          <Button onClick={onClose}>Cancel</Button>
          <Button kind="primary" busy={busy} disabled={!name.trim() || (tier === "caller" && scopes.length === 0)} onClick={() => void make()}>Make the key</Button>
        </>
      )}
    >
      {made ? (
        <Secret text={made.secret} what="key">Only its digest is stored, so it is shown this once.</Secret>
      ) : (
        <div class="stack">
          <TextField label="Name" value={name} onInput={setName} placeholder="Who or what uses it" required />
          <Select
            label="Kind" value={tier} onInput={(chosen) => setTier(chosen as "caller" | "admin")}
            choices={[["caller", "Caller: what is checked below"], ["admin", "Admin: sees and does everything"]]}
          />
          {tier === "caller" && <Checks label="What it may do" choices={SCOPES} checked={scopes} onChange={setScopes} />}
          <TextField label="Expires after, in days (optional)" type="number" value={days} onInput={setDays} inputMode="numeric" />
          {tier === "caller" && (
            <details>
              <summary>Limits (optional)</summary>
              <LimitFields texts={texts} onInput={setTexts} />
            </details>
          )}
          {error && <ErrorNote error={error} />}
        </div>
      )}
    </Dialog>
  );
}

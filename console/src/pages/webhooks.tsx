import { useState } from "preact/hooks";
import { get, post, remove } from "../api/client";
import type { Delivery, DeliveryPage, NewWebhook, Webhook, WebhookEvent } from "../api/types";
import { plural } from "../lib/format";
import { asError, useLoaded, useSending } from "../lib/hooks";
import { link, navigate, type Query } from "../router";
import { Badge, Button, Checks, Empty, ErrorNote, Loading, Secret, Select, TextField, Time, type Choice } from "../ui/basics";
import { Confirm, Dialog } from "../ui/dialog";
import { toast } from "../ui/toast";

const EVENTS: [WebhookEvent, string, string][] = [
  ["label.changed", "label.changed", "answers got another label"],
  ["run.ended", "run.ended", "a training run ended"],
  ["run.alarm", "run.alarm", "a training run raised an alarm"],
  ["critic.promoted", "critic.promoted", "a critic went live"],
  ["critic.rolled_back", "critic.rolled_back", "the critic before went live again"],
];
const PAGE = 25;

export function WebhooksTab({ query }: { query: Query }) {
  const webhooks = useLoaded("webhooks", (signal) => get<Webhook[]>("admin/webhooks", {}, signal));
  const filter = { status: query["status"], webhook: query["webhook"], cursor: query["cursor"] };
  const deliveries = useLoaded(
    JSON.stringify(filter), (signal) => get<DeliveryPage>("admin/webhooks/deliveries", { ...filter, limit: PAGE }, signal), 3000,
  );
  const [making, setMaking] = useState(false);
  const [deleting, setDeleting] = useState<Webhook>();
  const reload = () => {
    webhooks.reload();
    deliveries.reload();
  };
  return (
    <>
      <section class="card card-flush" aria-label="Webhooks">
        <header class="card-head"><h2>Webhooks</h2><Button kind="primary" icon="plus" onClick={() => setMaking(true)}>New webhook</Button></header>
        <Loading of={webhooks} lines={3}>
          {(found) => found.length === 0 ? (
            <Empty icon="swap" title="No webhooks">A webhook is an address of yours that the service tells about changed labels, runs and critics. Each message is signed.</Empty>
          ) : (
            <ul class="items">
              {found.map((webhook) => <Item key={webhook.id} webhook={webhook} sent={deliveries.reload} onDelete={() => setDeleting(webhook)} />)}
            </ul>
          )}
        </Loading>
      </section>
      <Deliveries webhooks={webhooks.data ?? []} query={query} found={deliveries} />
      {making && <MakeWebhook onClose={() => { setMaking(false); reload(); }} />}
      {deleting && (
        <Confirm
          title="Delete this webhook?" action="Delete" onClose={() => setDeleting(undefined)}
          run={async () => {
            await remove(`admin/webhooks/${deleting.id}`);
            if (query["webhook"] === deleting.id) navigate(link("settings", { view: "webhooks" }), { replace: true });
            toast("The webhook is deleted.");
            reload();
          }}
        >
          <p>Nothing more is sent to <code class="text">{deleting.url}</code>, and its deliveries are deleted, also those that wait.</p>
        </Confirm>
      )}
    </>
  );
}

function Item({ webhook, sent, onDelete }: { webhook: Webhook; sent: () => void; onDelete: () => void }) {
  const [busy, test] = useAct(async () => {
    await post<Delivery>(`admin/webhooks/${webhook.id}/test`);
    toast("A test event is sent. Its delivery is in the list below.");
    sent();
  });
  return (
    <li>
      <div class="row row-between">
        <strong class="text">{webhook.url}</strong>
        <span class="row">
          <Button busy={busy} onClick={() => void test()}>Send a test event</Button>
          <Button kind="danger" onClick={onDelete}>Delete</Button>
        </span>
      </div>
      <div class="items-meta">
        {webhook.events.length === EVENTS.length ? <Badge>All events</Badge> : webhook.events.map((event) => <Badge key={event}>{event}</Badge>)}
        <span>made <Time at={webhook.created_at} /></span>
        <a href={link("settings", { view: "webhooks", webhook: webhook.id })}>its deliveries</a>
      </div>
    </li>
  );
}

function Deliveries({ webhooks, query, found }: {
  webhooks: Webhook[];
  query: Query;
  found: { data: DeliveryPage | undefined; error: Error | undefined; reload: () => void };
}) {
  const view = (changes: Query) => link("settings", { view: "webhooks", status: query["status"], webhook: query["webhook"], ...changes });
  const set = (changes: Query) => navigate(view(changes), { replace: true });
  const urls = new Map(webhooks.map((webhook) => [webhook.id, webhook.url]));
  const choices: Choice[] = [["", "All"], ...webhooks.map((webhook): Choice => [webhook.id, webhook.url])];
  return (
    <section class="card card-flush" aria-label="Deliveries">
      <header class="card-head">
        <h2>Deliveries</h2>
        <div class="filters">
          <Select label="State" value={query["status"] ?? ""} choices={[["", "Any"], ["pending", "Pending"], ["delivered", "Delivered"], ["dead", "Dead"]]} onInput={(status) => set({ status })} />
          {webhooks.length > 1 && <Select label="Webhook" value={query["webhook"] ?? ""} choices={choices} onInput={(webhook) => set({ webhook })} />}
        </div>
      </header>
      <Loading of={found} lines={3}>
        {(page) => page.items.length === 0 ? (
          <Empty icon="traffic" title="No deliveries">{query["status"] || query["webhook"] ? "No delivery matches." : "Each event is listed here with its attempts, for a week after it was delivered."}</Empty>
        ) : (
          <ul class="items">
            {page.items.map((delivery) => <Attempts key={delivery.id} delivery={delivery} url={urls.get(delivery.webhook_id)} sent={found.reload} />)}
          </ul>
        )}
      </Loading>
      {(query["cursor"] || found.data?.next_cursor) && (
        <nav class="more row" aria-label="Pages of deliveries">
          {query["cursor"] && <a class="button" href={view({})}>Newest</a>}
          {found.data?.next_cursor && <a class="button" href={view({ cursor: found.data.next_cursor })}>Older</a>}
        </nav>
      )}
    </section>
  );
}

function Status({ delivery }: { delivery: Delivery }) {
  if (delivery.status === "delivered") return <Badge tone="good" icon="check">Delivered</Badge>;
  if (delivery.status === "dead") return <Badge tone="bad" icon="cross">Dead</Badge>;
  return <Badge tone={delivery.problem ? "warn" : "plain"}>Pending</Badge>;
}

function Attempts({ delivery, url, sent }: { delivery: Delivery; url: string | undefined; sent: () => void }) {
  const [busy, again] = useAct(async () => {
    await post<Delivery>(`admin/webhooks/deliveries/${delivery.id}/resend`);
    sent();
  });
  return (
    <li>
      <div class="row row-between">
        <span class="row"><strong>{delivery.event}</strong><Status delivery={delivery} /></span>
        <Button busy={busy} icon="refresh" aria-label={`Send again: ${delivery.event}`} onClick={() => void again()}>Send again</Button>
      </div>
      <div class="items-meta">
        <Time at={delivery.created_at} />
        <span>{plural(delivery.attempts, "attempt")}</span>
        {delivery.next_at && Date.parse(delivery.next_at) > Date.now() && <span>next <Time at={delivery.next_at} /></span>}
        {url && <span class="text">{url}</span>}
      </div>
      {delivery.problem && delivery.status !== "delivered" && <p class="items-text">Last attempt: {delivery.problem}</p>}
      <details>
        <summary>What is sent</summary>
        <pre class="block">{JSON.stringify(delivery.payload, null, 2)}</pre>
      </details>
    </li>
  );
}

/** Whether an act is being done, and the function that does it; its failure is shown as a toast. */
function useAct(act: () => Promise<void>): [boolean, () => Promise<void>] {
  const [busy, setBusy] = useState(false);
  const run = async () => {
    setBusy(true);
    try {
      await act();
    } catch (failure) {
      toast(asError(failure).message, { tone: "bad" });
    }
    setBusy(false);
  };
  return [busy, run];
}

function MakeWebhook({ onClose }: { onClose: () => void }) {
  const [url, setUrl] = useState("");
  const [events, setEvents] = useState<WebhookEvent[]>(EVENTS.map(([event]) => event));
  const { sent: made, error, busy, run: make } = useSending(() => post<NewWebhook>("admin/webhooks", { url: url.trim(), events }));
  return (
    <Dialog
      title={made ? "The new webhook" : "New webhook"} stays={made !== undefined} onClose={onClose}
      actions={made ? <Button kind="primary" onClick={onClose}>Done</Button> : (
        <>
          <Button onClick={onClose}>Cancel</Button>
          <Button kind="primary" busy={busy} disabled={!url.trim() || events.length === 0} onClick={() => void make()}>Make the webhook</Button>
        </>
      )}
    >
      {made ? (
        <Secret text={made.secret} what="secret">This secret signs each message, by the rules of Standard Webhooks. Your receiver needs it, and it is shown this once.</Secret>
      ) : (
        <div class="stack">
          <TextField label="Address" value={url} onInput={setUrl} placeholder="https://example.com/hooks/gadfly" required wide hint="http or https. It must answer with a status of 200 to 299 within 15 seconds." />
          <Checks label="Events" choices={EVENTS} checked={events} onChange={setEvents} />
          {error && <ErrorNote error={error} />}
        </div>
      )}
    </Dialog>
  );
}

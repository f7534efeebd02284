import { useEffect, useState } from "preact/hooks";
import { get } from "../api/client";
import type { Critic, InteractionPage as Page, InteractionSummary } from "../api/types";
import { asError, useLoaded, useTitle } from "../lib/hooks";
import { words } from "../lib/format";
import { link, navigate, type Query, type Route } from "../router";
import { Badge, Button, Empty, ErrorNote, LabelBadge, PageHead, Select, Skeleton, TextField, Time, VerdictBadge, type Choice } from "../ui/basics";

const ANY: Choice = ["", "Any"];
const PAGE = 50;
const SPANS: Record<string, number> = { hour: 3600, day: 86_400, week: 7 * 86_400, month: 30 * 86_400 };
const FILTERS = ["q", "label", "verdict", "confidence", "critic", "kind", "span", "episode", "task", "key"];

/** The query of GET /interactions for the filters in the address. */
export function apiQuery(query: Query): Record<string, string | undefined> {
  const [from, to] = (query["confidence"] ?? "").split("-");
  const span = SPANS[query["span"] ?? ""];
  return {
    q: query["q"],
    label: query["label"],
    verdict: query["verdict"],
    confidence_from: from,
    confidence_to: to,
    critic_version: query["critic"],
    kind: query["kind"],
    task: query["task"],
    key_id: query["key"],
    episode_id: query["episode"],
    since: span ? new Date(Date.now() - span * 1000).toISOString() : undefined,
  };
}

export function TrafficPage({ route }: { route: Route }) {
  useTitle("Traffic");
  const { query } = route;
  const key = FILTERS.map((name) => query[name] ?? "").join("\u0000");
  const [text, setText] = useState(query["q"] ?? "");
  const critics = useLoaded("critics", (signal) => get<Critic[]>("critics", {}, signal));
  const first = useLoaded(key, (signal) => get<Page>("interactions", { ...apiQuery(query), limit: PAGE }, signal));
  const [rest, setRest] = useState<{ key: string; items: InteractionSummary[]; cursor: string | null }>({ key, items: [], cursor: null });
  const [more, setMore] = useState<{ busy: boolean; error?: Error }>({ busy: false });
  useEffect(() => setRest({ key, items: [], cursor: first.data?.next_cursor ?? null }), [first.data]);
  useEffect(() => setText(query["q"] ?? ""), [query["q"]]);

  const set = (changes: Query) => navigate(link("traffic", { ...query, ...changes }), { replace: true });
  const loadMore = async () => {
    setMore({ busy: true });
    try {
      const page = await get<Page>("interactions", { ...apiQuery(query), limit: PAGE, cursor: rest.cursor });
      setRest((old) => ({ key, items: [...old.items, ...page.items], cursor: page.next_cursor }));
      setMore({ busy: false });
    } catch (failure) {
      setMore({ busy: false, error: asError(failure) });
    }
  };
  const filtered = FILTERS.some((name) => query[name]);
  const active = FILTERS.filter((name) => name !== "q" && query[name]).length;
  const [open, setOpen] = useState(false); // on a narrow screen
  const select = (label: string, name: string, choices: Choice[]) => (
    <Select label={label} value={query[name] ?? ""} choices={[ANY, ...choices]} onInput={(value) => set({ [name]: value })} />
  );

  return (
    <>
      <PageHead title="Traffic" lead="Everything that was judged, rewritten, chatted or imported, newest first." actions={<Button icon="refresh" onClick={first.reload}>Refresh</Button>} />
      <form class="filters" role="search" aria-label="Filter traffic" onSubmit={(event) => { event.preventDefault(); set({ q: text.trim() }); }}>
        <div class="search"><TextField label="Search question and answer" type="search" value={text} onInput={setText} placeholder="words, “a phrase”, -without" /></div>
        <Button type="submit" icon="search">Search</Button>
        <Button class="filters-open" aria-expanded={open} onClick={() => setOpen(!open)}>{active ? `Filters (${active})` : "Filters"}</Button>
        <div class={`filters-more ${open ? "filters-shown" : ""}`}>
          {select("Label", "label", [["right", "Right"], ["wrong", "Wrong"], ["none", "No label"], ["conflict", "Conflict"]])}
          {select("Verdict", "verdict", [["correct", "Correct"], ["incorrect", "Incorrect"], ["unparsed", "No verdict"]])}
          {select("Confidence", "confidence", [["0-0.6", "Below 60 %"], ["0.6-0.9", "60 to 90 %"], ["0.9-1", "Above 90 %"]])}
          {select("Critic", "critic", (critics.data ?? []).map((critic): Choice => [String(critic.version), `critic@${critic.version}`]))}
          {select("Kind", "kind", [["critique", "Critique"], ["refine", "Refine"], ["chat", "Chat"], ["import", "Import"]])}
          {select("Time", "span", [["hour", "Last hour"], ["day", "Last day"], ["week", "Last week"], ["month", "Last 30 days"]])}
        </div>
        {filtered && <a class="button button-quiet" href="#/traffic">Clear</a>}
      </form>
      {query["episode"] && <p class="row small"><Badge tone="accent">One episode</Badge> <span class="mono">{query["episode"]}</span></p>}
      {query["key"] && <p class="row small"><Badge tone="accent">One caller</Badge> <span class="mono">{query["key"]}</span></p>}
      {first.error && <ErrorNote error={first.error} retry={first.reload} />}
      {!first.data && !first.error && <div class="card"><Skeleton lines={12} /></div>}
      {first.data && (
        <section class="card card-flush" aria-label="Interactions">
          {first.data.items.length === 0 ? (
            filtered ? (
              <Empty icon="search" title="Nothing matches" action={<a class="button" href="#/traffic">Clear the filters</a>}>Try fewer filters or other words.</Empty>
            ) : (
              <Empty icon="traffic" title="No traffic yet" action={<a class="button button-primary" href="#/playground">Judge an answer</a>}>
                Send answers to <code>POST /critique</code>, chat through <code>/v1</code>, or run <code>gadfly import</code>.
              </Empty>
            )
          ) : (
            <>
              <ul class="items">{[...first.data.items, ...rest.items].map((item) => <Item key={item.id} item={item} />)}</ul>
              {more.error && <ErrorNote error={more.error} />}
              {rest.cursor && <div class="more"><Button busy={more.busy} onClick={() => void loadMore()}>Show more</Button></div>}
            </>
          )}
        </section>
      )}
    </>
  );
}

function Item({ item }: { item: InteractionSummary }) {
  return (
    <li class="interaction">
      <div class="interaction-text">
        <a class="cover clip" href={link(`traffic/${item.id}`)}>{item.question}</a>
        {item.response !== null && <p class="items-text clip">{item.response}</p>}
      </div>
      <div class="items-meta">
        <span class="meta-verdict">
          <VerdictBadge verdict={item.verdict} confidence={item.confidence} />
        </span>
        <span class="meta-label"><span class="sr-only">Label: </span><LabelBadge label={item.label} standing={item.standing} /></span>
        <span class="meta-critic">{item.critic ? `critic@${item.critic.version}` : words(item.kind)}</span>
        <span class="meta-time"><Time at={item.created_at} /></span>
      </div>
    </li>
  );
}

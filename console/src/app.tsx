import type { ComponentChildren, FunctionComponent } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { get, logIn, logOut, readSession, whenLoggedOut } from "./api/client";
import type { Scope, Session, State } from "./api/types";
import { asError, useLoaded, useTitle } from "./lib/hooks";
import { CriticsPage } from "./pages/critics";
import { CriticPage } from "./pages/critic";
import { InteractionPage } from "./pages/interaction";
import { LabelPage } from "./pages/label";
import { OverviewPage } from "./pages/overview";
import { PlaygroundPage } from "./pages/playground";
import { RunPage } from "./pages/run";
import { RunsPage } from "./pages/runs";
import { SettingsPage } from "./pages/settings";
import { TrafficPage } from "./pages/traffic";
import { navigate, useRoute, type Route } from "./router";
import { Button, Empty, ErrorNote, Skeleton, TextField } from "./ui/basics";
import { Icon, type IconName } from "./ui/icons";
import { Toasts } from "./ui/toast";
import { viewerOf, ViewerContext } from "./viewer";

type Page = FunctionComponent<{ route: Route }>;

interface Item {
  path: string;
  text: string;
  icon: IconName;
  page: Page;
  detail?: Page;
  scopes?: Scope[]; // one of them is needed; without any, the page is for admins
}

const ITEMS: Item[] = [
  { path: "overview", text: "Overview", icon: "overview", page: OverviewPage, scopes: ["read"] },
  { path: "label", text: "Label queue", icon: "label", page: LabelPage, scopes: ["use", "label"] },
  { path: "playground", text: "Playground", icon: "play", page: PlaygroundPage, scopes: ["use"] },
  { path: "traffic", text: "Traffic", icon: "traffic", page: TrafficPage, detail: InteractionPage, scopes: ["use", "read"] },
  { path: "critics", text: "Critics", icon: "critics", page: CriticsPage, detail: CriticPage, scopes: ["use", "label", "read", "train"] },
  { path: "runs", text: "Runs", icon: "runs", page: RunsPage, detail: RunPage, scopes: ["read", "train"] },
  { path: "settings", text: "Settings", icon: "settings", page: SettingsPage },
];

export function App() {
  const [session, setSession] = useState<Session | null | undefined>(undefined);
  const [error, setError] = useState<Error>();
  const load = () => {
    setError(undefined);
    readSession().then(setSession, (failure: unknown) => setError(asError(failure)));
  };
  useEffect(() => {
    whenLoggedOut(() => setSession(null));
    load();
  }, []);
  if (error) return <div class="login"><ErrorNote error={error} retry={load} /></div>;
  if (session === undefined) return <div class="login"><Skeleton lines={3} /></div>;
  if (session === null) return <LogIn onDone={setSession} />;
  return (
    <ViewerContext.Provider value={viewerOf(session)}>
      <Shell session={session} />
      <Toasts />
    </ViewerContext.Provider>
  );
}

function LogIn({ onDone }: { onDone: (session: Session) => void }) {
  const [key, setKey] = useState("");
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<Error>();
  useTitle("Log in");
  const submit = async (event: Event) => {
    event.preventDefault();
    setBusy(true);
    setError(undefined);
    try {
      onDone(await logIn(key.trim()));
    } catch (failure) {
      setError(asError(failure));
      setBusy(false);
    }
  };
  return (
    <main class="login">
      <form class="card" onSubmit={(event) => void submit(event)}>
        <span class="brand"><img src="assets/icon.svg" alt="" />Gadfly</span>
        <div>
          <h1>Log in</h1>
          <p class="lead">With an API key of this deployment.</p>
        </div>
        <TextField
          label="API key" type="password" value={key} onInput={setKey} placeholder="gf_…" required autocomplete="current-password"
          hint={<>An operator makes one with <code>gadfly keys create</code>.</>}
        />
        {error && <ErrorNote error={error} />}
        <Button kind="primary" type="submit" busy={busy} disabled={!key.trim()}>Log in</Button>
      </form>
    </main>
  );
}

function Shell({ session }: { session: Session }) {
  const route = useRoute();
  const [open, setOpen] = useState(false);
  const main = useRef<HTMLElement>(null);
  const { isAdmin, may } = viewerOf(session);
  const items = ITEMS.filter((item) => isAdmin || may(...(item.scopes ?? [])));
  const current = items.find((item) => item.path === route.path[0]);
  const address = route.path.join("/");
  useEffect(() => {
    if (!route.path.length) navigate(`#/${items[0]!.path}`, { replace: true });
  }, [address]);
  const first = useRef(true);
  useEffect(() => {
    setOpen(false);
    if (!first.current) main.current?.focus({ preventScroll: true });
    if (!first.current) scrollTo(0, 0);
    first.current = false;
  }, [address]);
  useEffect(() => {
    if (!open) return;
    const onKey = (event: KeyboardEvent) => event.key === "Escape" && setOpen(false);
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, [open]);
  const Shown = current && (route.path[1] && current.detail ? current.detail : current.page);
  return (
    <div class="shell">
      <a class="skip-link" href="#main" onClick={(event) => { event.preventDefault(); main.current?.focus(); }}>Skip to content</a>
      <header class="topbar">
        <Button kind="quiet" icon="menu" aria-label="Menu" aria-expanded={open} aria-controls="side" onClick={() => setOpen(!open)} />
        <a class="brand" href="#/overview"><img src="assets/icon.svg" alt="" />Gadfly</a>
        <ThemeSwitch />
      </header>
      {open && <button class="veil" type="button" aria-label="Close the menu" onClick={() => setOpen(false)} />}
      <aside id="side" class={`side ${open ? "side-open" : ""}`} aria-label="Console">
        <a class="brand" href="#/overview"><img src="assets/icon.svg" alt="" />Gadfly</a>
        <nav class="nav" aria-label="Pages">
          {items.map((item) => (
            <a key={item.path} href={`#/${item.path}`} aria-current={item === current ? "page" : undefined}>
              <Icon name={item.icon} />
              {item.text}
            </a>
          ))}
        </nav>
        <div class="side-foot">
          <ServiceState />
          <div class="side-tools">
            <span class="who" title={session.key_id ?? undefined}>
              <span>{session.keyless ? "No keys" : session.key_name ?? "Key"}</span>
              <span class="muted">{session.keyless ? "this computer only" : isAdmin ? session.tier : session.scopes.join(", ")}</span>
            </span>
            <ThemeSwitch />
            {!session.keyless && <Button kind="quiet" icon="out" aria-label="Log out" title="Log out" onClick={() => void logOut()} />}
          </div>
        </div>
      </aside>
      <main class="main" ref={main} tabIndex={-1} id="main">
        <div class="page">
          {Shown ? <Shown key={address} route={route} /> : route.path.length > 0 && (
            <NoPage of={ITEMS.find((item) => item.path === route.path[0])} first={items[0]!} />
          )}
        </div>
      </main>
    </div>
  );
}

/** Instead of a page that the key may not open, or that does not exist. */
function NoPage({ of, first }: { of: Item | undefined; first: Item }) {
  const back = <a class="button" href={`#/${first.path}`}>{first.text}</a>;
  if (!of) {
    return <Empty icon="question" title="There is no such page" heading="h1" action={back}>The address names a page that this console does not have.</Empty>;
  }
  return (
    <Empty icon="key" title={`This key may not open ${of.text}`} heading="h1" action={back}>
      {of.scopes ? `It needs a key with the scope ${of.scopes.join(" or ")}, or an admin key.` : "It needs an admin key."} Log out to use another key.
    </Empty>
  );
}

function ServiceState() {
  const state = useLoaded("state", (signal) => get<State>("state", {}, signal), 5000);
  const found = state.data;
  const up = found?.engines.filter((engine) => engine.reachable).length ?? 0;
  const all = found?.engines.length ?? 0;
  const tone = state.error || (found && up === 0) ? "bad" : found && up < all ? "warn" : "good";
  return (
    <dl class="side-state" aria-label="State of the service">
      <div>
        <dt><span class={`dot dot-${found || state.error ? tone : ""}`} />Service</dt>
        <dd>{state.error ? "no answer" : found ? found.status : "…"}</dd>
      </div>
      <Row name="Live critic">{found ? (found.live_critic === null ? "none" : <a href={`#/critics/${found.live_critic}`}>critic@{found.live_critic}</a>) : "…"}</Row>
      <Row name="Engines">{found ? `${up} of ${all} up` : "…"}</Row>
      <Row name="Task">{found?.task ?? "…"}</Row>
    </dl>
  );
}

function Row({ name, children }: { name: string; children: ComponentChildren }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{children}</dd>
    </div>
  );
}

type Theme = "system" | "light" | "dark";
const NEXT: Record<Theme, Theme> = { system: "light", light: "dark", dark: "system" };
const THEME_ICONS = { system: "auto", light: "sun", dark: "moon" } as const;

function ThemeSwitch() {
  const [theme, setTheme] = useState<Theme>(() => (document.documentElement.dataset["theme"] as Theme | undefined) ?? "system");
  useEffect(() => {
    const onChange = () => setTheme((document.documentElement.dataset["theme"] as Theme | undefined) ?? "system");
    addEventListener("gadfly-theme", onChange);
    return () => removeEventListener("gadfly-theme", onChange);
  }, []);
  const change = () => {
    const next = NEXT[theme];
    if (next === "system") {
      delete document.documentElement.dataset["theme"];
      localStorage.removeItem("gadfly-theme");
    } else {
      document.documentElement.dataset["theme"] = next;
      localStorage.setItem("gadfly-theme", next);
    }
    dispatchEvent(new Event("gadfly-theme"));
  };
  return (
    <Button kind="quiet" icon={THEME_ICONS[theme]} aria-label={`Theme: ${theme}. Change to ${NEXT[theme]}`} title={`Theme: ${theme}`} onClick={change} />
  );
}

import { useCallback, useEffect, useRef, useState } from "preact/hooks";

export interface Loaded<T> {
  data: T | undefined;
  error: Error | undefined;
  loading: boolean;
  reload: () => void;
  set: (data: T) => void;
}

export interface Sending<T> {
  sent: T | undefined;
  error: Error | undefined;
  busy: boolean;
  run: () => Promise<void>;
}

/** Sends something when `run` is called, and keeps the answer or the error. */
export function useSending<T>(send: () => Promise<T>): Sending<T> {
  const [state, setState] = useState<{ sent?: T; error?: Error; busy: boolean }>({ busy: false });
  const run = async () => {
    setState((old) => ({ sent: old.sent, busy: true }));
    try {
      setState({ sent: await send(), busy: false });
    } catch (failure) {
      setState({ error: asError(failure), busy: false });
    }
  };
  return { sent: state.sent, error: state.error, busy: state.busy, run };
}

/** Loads at the start, when `key` changes, on `reload()`, and every `everyMs` while the page is visible. */
export function useLoaded<T>(key: string, load: (signal: AbortSignal) => Promise<T>, everyMs?: number): Loaded<T> {
  const [state, setState] = useState<{ key: string; data?: T; error?: Error; loading: boolean }>({ key, loading: true });
  const [count, setCount] = useState(0);
  const latest = useRef(load);
  latest.current = load;
  useEffect(() => {
    const aborted = new AbortController();
    setState((old) => (old.key === key ? { ...old, loading: true } : { key, loading: true }));
    latest.current(aborted.signal).then(
      (data) => !aborted.signal.aborted && setState({ key, data, loading: false }),
      (error: unknown) =>
        !aborted.signal.aborted && setState((old) => ({ ...old, error: asError(error), loading: false })),
    );
    return () => aborted.abort();
  }, [key, count]);
  useEffect(() => {
    if (!everyMs) return;
    const timer = setInterval(() => document.visibilityState === "visible" && setCount((n) => n + 1), everyMs);
    return () => clearInterval(timer);
  }, [key, everyMs]);
  const reload = useCallback(() => setCount((n) => n + 1), []);
  const set = useCallback((data: T) => setState({ key, data, loading: false }), [key]);
  const current = state.key === key ? state : { key, loading: true, data: undefined, error: undefined };
  return { data: current.data, error: current.error, loading: current.loading, reload, set };
}

export function asError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error));
}

/** Calls the handler of a pressed key, unless the person types in a field or holds a modifier. */
export function useKeys(keys: Record<string, (event: KeyboardEvent) => void>, active = true): void {
  const latest = useRef(keys);
  latest.current = keys;
  useEffect(() => {
    if (!active) return;
    const onKey = (event: KeyboardEvent) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
      const target = event.target as HTMLElement;
      if (target.closest("input:not([type=checkbox]):not([type=radio]), textarea, select, dialog, [contenteditable]")) return;
      const handler = latest.current[event.key] ?? latest.current[event.key.toLowerCase()];
      if (!handler) return;
      event.preventDefault();
      handler(event);
    };
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, [active]);
}

export function useTitle(title: string): void {
  useEffect(() => {
    document.title = `${title} · Gadfly`;
  }, [title]);
}

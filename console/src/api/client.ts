// The one place that talks to the service. The page lies at PREFIX/console/, the API at PREFIX/.
import type { Problem, Session } from "./types";

export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly problem?: Problem,
  ) {
    super(message);
  }
}

let csrfToken: string | null = null;
let onLoggedOut: () => void = () => undefined;

export function whenLoggedOut(handler: () => void): void {
  onLoggedOut = handler;
}

export type Params = Record<string, string | number | boolean | null | undefined>;

export function url(path: string, params: Params = {}): string {
  const address = new URL(`../${path}`, document.baseURI.split("#")[0]);
  for (const [name, value] of Object.entries(params)) {
    if (value !== undefined && value !== null && value !== "") address.searchParams.set(name, String(value));
  }
  return address.href;
}

interface Options {
  body?: unknown;
  params?: Params;
  signal?: AbortSignal;
  keepalive?: boolean;
}

async function send(method: string, path: string, { body, params, signal, keepalive }: Options = {}): Promise<Response> {
  const headers: Record<string, string> = { Accept: "application/json, text/event-stream" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (method !== "GET" && csrfToken) headers["X-CSRF-Token"] = csrfToken;
  let response: Response;
  try {
    response = await fetch(url(path, params), {
      method,
      headers,
      credentials: "same-origin",
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      ...(signal ? { signal } : {}),
      ...(keepalive ? { keepalive } : {}),
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError(0, "The service does not answer. Check that it runs and that this computer reaches it.");
  }
  if (response.ok) return response;
  const text = await response.text();
  let problem: Problem | undefined;
  try {
    problem = JSON.parse(text) as Problem;
  } catch {
    // A proxy's page, and not the service's document.
  }
  if (response.status === 401 && path !== "session") onLoggedOut();
  const fields = problem?.errors?.map((error) => `${error.field}: ${error.message}`).join("; ");
  const detail = problem?.detail ?? `The service answered with status ${response.status}.`;
  throw new ApiError(response.status, fields ? `${detail} ${fields}` : detail, problem);
}

export async function get<T>(path: string, params?: Params, signal?: AbortSignal): Promise<T> {
  return (await send("GET", path, { params, signal } as Options)).json() as Promise<T>;
}

export async function post<T>(path: string, body: unknown = {}, options: Options = {}): Promise<T> {
  const response = await send("POST", path, { ...options, body });
  return (response.status === 204 ? undefined : await response.json()) as T;
}

export async function patch<T>(path: string, body: unknown): Promise<T> {
  return (await send("PATCH", path, { body })).json() as Promise<T>;
}

export async function remove<T = void>(path: string): Promise<T> {
  const response = await send("DELETE", path);
  return (response.status === 204 ? undefined : await response.json()) as T;
}

export interface ServerEvent {
  event: string;
  id: string | null;
  data: unknown;
}

/** Server-sent events of a response, until it ends or `signal` aborts. */
export async function* events(
  method: "GET" | "POST",
  path: string,
  options: Options = {},
): AsyncGenerator<ServerEvent, void> {
  const response = await send(method, path, options);
  if (response.status === 204 || !response.body) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      rest += value;
      let end: number;
      while ((end = rest.indexOf("\n\n")) >= 0) {
        const block = rest.slice(0, end);
        rest = rest.slice(end + 2);
        const found = parseEvent(block);
        if (found) yield found;
      }
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}

function parseEvent(block: string): ServerEvent | null {
  let event = "message";
  let id: string | null = null;
  const data: string[] = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("event:")) event = line.slice(6).trim();
    else if (line.startsWith("id:")) id = line.slice(3).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
  }
  return data.length ? { event, id, data: JSON.parse(data.join("\n")) as unknown } : null;
}

function remember(session: Session): Session {
  csrfToken = session.csrf_token;
  return session;
}

/** Who is logged in; null: keys are on, and the browser has no session. */
export async function readSession(): Promise<Session | null> {
  try {
    return remember(await get<Session>("session"));
  } catch (error) {
    if (error instanceof ApiError && error.status === 401) return null;
    throw error;
  }
}

export async function logIn(key: string): Promise<Session> {
  return remember(await post<Session>("session", { key }));
}

export async function logOut(): Promise<void> {
  await remove("session");
  csrfToken = null;
  onLoggedOut();
}

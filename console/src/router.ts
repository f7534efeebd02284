// Addresses of views live in the fragment (`#/traffic?verdict=incorrect`): the server needs to know no path but one, and
// no prefix that a proxy adds.
import { useEffect, useState } from "preact/hooks";

export type Query = Record<string, string>;

export interface Route {
  path: string[]; // segments: ["traffic", "019a…"]
  query: Query;
}

export function readRoute(hash: string): Route {
  const [path = "", search = ""] = hash.replace(/^#\/?/, "").split("?", 2);
  return {
    path: path.split("/").filter(Boolean).map(decodeURIComponent),
    query: Object.fromEntries(new URLSearchParams(search)),
  };
}

/** The address of a view. Empty values are left out. */
export function link(path: string, query: Record<string, string | number | boolean | null | undefined> = {}): string {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    if (value !== undefined && value !== null && value !== "") search.set(name, String(value));
  }
  const text = search.toString();
  return `#/${path}${text ? `?${text}` : ""}`;
}

export function navigate(address: string, { replace = false } = {}): void {
  if (replace) {
    history.replaceState(null, "", address);
    dispatchEvent(new HashChangeEvent("hashchange"));
  } else {
    location.hash = address;
  }
}

export function useRoute(): Route {
  const [hash, setHash] = useState(location.hash);
  useEffect(() => {
    const onChange = () => setHash(location.hash);
    addEventListener("hashchange", onChange);
    return () => removeEventListener("hashchange", onChange);
  }, []);
  return readRoute(hash);
}

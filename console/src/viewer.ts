import { createContext } from "preact";
import { useContext } from "preact/hooks";
import type { Scope, Session } from "./api/types";

export interface Viewer {
  session: Session;
  isAdmin: boolean;
  may: (...scopes: Scope[]) => boolean;
}

/** Who looks at the console, and whether its key has one of some scopes. */
export function viewerOf(session: Session): Viewer {
  return { session, isAdmin: session.tier === "admin", may: (...scopes) => scopes.some((scope) => session.scopes.includes(scope)) };
}

export const ViewerContext = createContext<Viewer | null>(null);

export function useViewer(): Viewer {
  return useContext(ViewerContext)!;
}

import { createContext } from "preact";
import { useContext } from "preact/hooks";
import type { Session } from "./api/types";

export interface Viewer {
  session: Session;
  isAdmin: boolean;
}

export const ViewerContext = createContext<Viewer | null>(null);

export function useViewer(): Viewer {
  return useContext(ViewerContext)!;
}

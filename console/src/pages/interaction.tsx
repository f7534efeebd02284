import type { Route } from '../router'; export function InteractionPage(_: { route: Route }) { return null; }

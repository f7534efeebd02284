import type { Route } from '../router'; export function RunPage(_: { route: Route }) { return null; }

import type { Route } from '../router'; export function RunsPage(_: { route: Route }) { return null; }

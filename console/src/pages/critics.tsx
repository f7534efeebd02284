import type { Route } from '../router'; export function CriticsPage(_: { route: Route }) { return null; }

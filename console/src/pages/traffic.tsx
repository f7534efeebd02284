import type { Route } from '../router'; export function TrafficPage(_: { route: Route }) { return null; }

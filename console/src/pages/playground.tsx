import type { Route } from '../router'; export function PlaygroundPage(_: { route: Route }) { return null; }

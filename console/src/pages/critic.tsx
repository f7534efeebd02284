import type { Route } from '../router'; export function CriticPage(_: { route: Route }) { return null; }

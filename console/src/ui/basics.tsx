import type { ButtonHTMLAttributes, ComponentChildren } from "preact";
import { useEffect, useId, useState } from "preact/hooks";
import { ApiError } from "../api/client";
import { ago, exact, percent } from "../lib/format";
import { Icon, type IconName } from "./icons";

export function cx(...names: (string | false | null | undefined)[]): string {
  return names.filter(Boolean).join(" ");
}

interface ButtonProps extends Omit<ButtonHTMLAttributes<HTMLButtonElement>, "icon" | "type" | "disabled"> {
  kind?: "primary" | "danger" | "quiet" | "good" | "bad" | undefined;
  icon?: IconName | undefined;
  busy?: boolean | undefined;
  keys?: string | undefined; // a shortcut to show
  disabled?: boolean | undefined;
  type?: "button" | "submit" | undefined;
}

export function Button({ kind, icon, busy, keys, children, disabled, type = "button", class: extra, ...rest }: ButtonProps) {
  return (
    <button
      {...rest}
      type={type}
      class={cx("button", kind && `button-${kind}`, !children && "button-icon", extra as string | undefined)}
      disabled={disabled || busy}
      aria-busy={busy || undefined}
      aria-keyshortcuts={keys}
    >
      {busy ? <span class="spinner" aria-hidden="true" /> : icon && <Icon name={icon} />}
      {children && <span>{children}</span>}
      {keys && <kbd aria-hidden="true">{keys}</kbd>}
    </button>
  );
}

export function Badge({ tone = "plain", icon, children, title }: {
  tone?: "plain" | "good" | "bad" | "warn" | "accent";
  icon?: IconName;
  children: ComponentChildren;
  title?: string;
}) {
  return (
    <span class={`badge badge-${tone}`} title={title}>
      {icon && <Icon name={icon} size={14} />}
      {children}
    </span>
  );
}

const VERDICTS = {
  correct: { tone: "good", icon: "check", text: "Correct" },
  incorrect: { tone: "bad", icon: "cross", text: "Incorrect" },
  unparsed: { tone: "warn", icon: "question", text: "No verdict" },
} as const;

export function VerdictBadge({ verdict, confidence }: { verdict: string | null | undefined; confidence?: number | null }) {
  const shown = VERDICTS[verdict as keyof typeof VERDICTS];
  if (!shown) return <Badge>Not judged</Badge>;
  return (
    <Badge tone={shown.tone} icon={shown.icon}>
      {shown.text}
      {confidence !== null && confidence !== undefined && <span class="badge-number">{percent(confidence)}</span>}
    </Badge>
  );
}

const LABELS = {
  right: { tone: "good", icon: "check", text: "Right" },
  wrong: { tone: "bad", icon: "cross", text: "Wrong" },
} as const;

export function LabelBadge({ label, standing }: { label: string | null | undefined; standing?: string | null }) {
  const shown = LABELS[label as keyof typeof LABELS];
  if (standing === "conflict" && !shown) return <Badge tone="warn" icon="warn">Conflict</Badge>;
  if (!shown) return <span class="muted">No label</span>;
  return <Badge tone={shown.tone} icon={shown.icon}>{shown.text}</Badge>;
}

export function GradeBadge({ grade }: { grade: string | null | undefined }) {
  if (!grade) return null;
  if (grade === "no_answer") return <Badge tone="warn" icon="question">No answer found</Badge>;
  return <LabelBadge label={grade} />;
}

/** A moment, relative to now; the exact one in the reader's zone on hover and for screen readers. */
export function Time({ at, absolute = false }: { at: string; absolute?: boolean }) {
  const [, tick] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => tick((n) => n + 1), 30_000);
    return () => clearInterval(timer);
  }, []);
  return (
    <time dateTime={at} title={exact(at)}>
      {absolute ? exact(at) : ago(at)}
    </time>
  );
}

export function Card({ title, actions, children, class: extra, note, label }: {
  title?: ComponentChildren;
  actions?: ComponentChildren;
  children: ComponentChildren;
  class?: string;
  note?: ComponentChildren;
  label?: string;
}) {
  const id = useId();
  return (
    <section class={cx("card", extra)} aria-labelledby={title ? id : undefined} aria-label={title ? undefined : label}>
      {(title || actions) && (
        <header class="card-head">
          {title && <h2 id={id}>{title}</h2>}
          {actions && <div class="card-actions">{actions}</div>}
        </header>
      )}
      {note && <p class="card-note">{note}</p>}
      {children}
    </section>
  );
}

export function PageHead({ title, lead, actions, back }: {
  title: ComponentChildren;
  lead?: ComponentChildren;
  actions?: ComponentChildren;
  back?: { href: string; text: string };
}) {
  return (
    <header class="page-head">
      <div>
        {back && (
          <a class="back" href={back.href}>
            <Icon name="left" size={16} />
            {back.text}
          </a>
        )}
        <h1>{title}</h1>
        {lead && <p class="lead">{lead}</p>}
      </div>
      {actions && <div class="page-actions">{actions}</div>}
    </header>
  );
}

export function Empty({ icon = "spark", title, children, action, heading: Heading = "h2" }: {
  icon?: IconName;
  title: string;
  heading?: "h1" | "h2"; // h1 where nothing else is on the page
  children?: ComponentChildren;
  action?: ComponentChildren;
}) {
  return (
    <div class="empty">
      <span class="empty-icon"><Icon name={icon} size={26} /></span>
      <Heading>{title}</Heading>
      {children && <p>{children}</p>}
      {action && <div class="row">{action}</div>}
    </div>
  );
}

export function ErrorNote({ error, retry }: { error: Error; retry?: () => void }) {
  const forbidden = error instanceof ApiError && error.status === 403;
  return (
    <div class="note note-bad" role="alert">
      <Icon name="warn" />
      <div>
        <strong>{forbidden ? "This key may not do that" : "That did not work"}</strong>
        <p>{error.message.charAt(0).toUpperCase() + error.message.slice(1)}</p>
      </div>
      {retry && !forbidden && <Button icon="refresh" onClick={retry}>Try again</Button>}
    </div>
  );
}

export function Note({ tone = "plain", icon = "spark", title, children }: {
  tone?: "plain" | "warn" | "good" | "bad";
  icon?: IconName;
  title?: string;
  children?: ComponentChildren;
}) {
  return (
    <div class={`note note-${tone}`}>
      <Icon name={icon} />
      <div>
        {title && <strong>{title}</strong>}
        {children && <div>{children}</div>}
      </div>
    </div>
  );
}

export function Skeleton({ lines = 4 }: { lines?: number }) {
  return (
    <div class="skeleton" role="status" aria-label="Loading">
      {Array.from({ length: lines }, (_, line) => <span key={line} class={`skeleton-${line % 4}`} />)}
    </div>
  );
}

/** Loading, failed, empty or loaded: one of them, and never a blank page. */
export function Loading<T>({ of, lines, children }: {
  of: { data: T | undefined; error: Error | undefined; reload: () => void };
  lines?: number;
  children: (data: T) => ComponentChildren;
}) {
  return (
    <>
      {of.error && <ErrorNote error={of.error} retry={of.reload} />}
      {of.data !== undefined ? children(of.data) : !of.error && <Skeleton lines={lines ?? 6} />}
    </>
  );
}

export function Stat({ name, value, unit, detail, tone }: {
  name: string;
  value: ComponentChildren;
  unit?: string;
  detail?: ComponentChildren;
  tone?: "good" | "bad" | "warn";
}) {
  return (
    <div class={cx("stat", tone && `stat-${tone}`)}>
      <dt>{name}</dt>
      <dd>
        <span class="stat-value">{value}</span>
        {unit && <span class="stat-unit">{unit}</span>}
        {detail && <span class="stat-detail">{detail}</span>}
      </dd>
    </div>
  );
}

export function Facts({ items }: { items: [string, ComponentChildren][] }) {
  return (
    <dl class="facts">
      {items.filter(([, value]) => value !== null && value !== undefined && value !== "").map(([name, value]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}

interface FieldProps {
  label: string;
  hint?: ComponentChildren;
  wide?: boolean;
  error?: string | null;
  children: (id: string, describedBy: string | undefined) => ComponentChildren;
}

export function Field({ label, hint, wide, error, children }: FieldProps) {
  const id = useId();
  const hintId = hint || error ? `${id}-hint` : undefined;
  return (
    <div class={cx("field", wide && "field-wide")}>
      <label for={id}>{label}</label>
      {children(id, hintId)}
      {(hint || error) && <p id={hintId} class={cx("hint", error && "hint-bad")}>{error ?? hint}</p>}
    </div>
  );
}

export function TextField({ label, value, onInput, hint, type = "text", placeholder, required, autocomplete, wide, inputMode }: {
  label: string;
  value: string;
  onInput: (value: string) => void;
  hint?: ComponentChildren;
  type?: "text" | "search" | "password" | "number" | "datetime-local";
  placeholder?: string;
  required?: boolean;
  autocomplete?: string;
  wide?: boolean;
  inputMode?: "numeric" | "decimal";
}) {
  return (
    <Field label={label} hint={hint} wide={wide ?? false}>
      {(id, describedBy) => (
        <input
          {...({ type } as { type: "text" })} id={id} value={value} placeholder={placeholder} required={required} aria-describedby={describedBy}
          autocomplete={autocomplete ?? "off"} inputMode={inputMode}
          onInput={(event) => onInput(event.currentTarget.value)}
        />
      )}
    </Field>
  );
}

export function TextArea({ label, value, onInput, hint, rows = 4, placeholder, required, onKeyDown }: {
  label: string;
  value: string;
  onInput: (value: string) => void;
  hint?: ComponentChildren;
  rows?: number;
  placeholder?: string;
  required?: boolean;
  onKeyDown?: (event: KeyboardEvent) => void;
}) {
  return (
    <Field label={label} hint={hint} wide>
      {(id, describedBy) => (
        <textarea
          id={id} rows={rows} value={value} placeholder={placeholder} required={required} aria-describedby={describedBy}
          onInput={(event) => onInput(event.currentTarget.value)} onKeyDown={onKeyDown}
        />
      )}
    </Field>
  );
}

export type Choice = [value: string, text: string];

export function Select({ label, value, choices, onInput, hint }: {
  label: string;
  value: string;
  choices: Choice[];
  onInput: (value: string) => void;
  hint?: ComponentChildren;
}) {
  return (
    <Field label={label} hint={hint}>
      {(id, describedBy) => (
        <select id={id} value={value} aria-describedby={describedBy} onChange={(event) => onInput(event.currentTarget.value)}>
          {choices.map(([each, text]) => <option key={each} value={each}>{text}</option>)}
        </select>
      )}
    </Field>
  );
}

export function Toggle({ label, checked, onChange }: { label: string; checked: boolean; onChange: (checked: boolean) => void }) {
  return (
    <label class="toggle">
      <input type="checkbox" role="switch" checked={checked} onChange={(event) => onChange(event.currentTarget.checked)} />
      <span class="toggle-track" aria-hidden="true" />
      <span>{label}</span>
    </label>
  );
}

/** Boxes to check, of which any number may be. */
export function Checks<T extends string>({ label, choices, checked, onChange, hint }: {
  label: string;
  choices: [value: T, text: string, explanation?: string][];
  checked: T[];
  onChange: (checked: T[]) => void;
  hint?: ComponentChildren;
}) {
  const id = useId();
  return (
    <fieldset class="checks" aria-describedby={hint ? id : undefined}>
      <legend class="legend">{label}</legend>
      {choices.map(([value, text, explanation]) => (
        <label key={value} class="check">
          <input
            type="checkbox" checked={checked.includes(value)}
            onChange={(event) => onChange(choices.map(([each]) => each).filter((each) => (each === value ? event.currentTarget.checked : checked.includes(each))))}
          />
          <span>{text}{explanation && <span class="muted"> {explanation}</span>}</span>
        </label>
      ))}
      {hint && <p id={id} class="hint">{hint}</p>}
    </fieldset>
  );
}

/** A secret that the service shows once. */
export function Secret({ text, what, children }: { text: string; what: string; children?: ComponentChildren }) {
  return (
    <>
      <Note tone="warn" icon="key" title="Copy it now">{children}</Note>
      <div class="block row row-between secret"><code>{text}</code><Copy text={text} label={`Copy the ${what}`} /></div>
    </>
  );
}

export function Tabs({ tabs, current, label }: { tabs: { id: string; text: string; href: string }[]; current: string; label: string }) {
  return (
    <nav class="tabs" aria-label={label}>
      {tabs.map((tab) => (
        <a key={tab.id} href={tab.href} aria-current={tab.id === current ? "page" : undefined}>{tab.text}</a>
      ))}
    </nav>
  );
}

export function Copy({ text, label = "Copy" }: { text: string; label?: string }) {
  const [done, setDone] = useState(false);
  return (
    <Button
      kind="quiet" icon={done ? "check" : "copy"} aria-label={done ? "Copied" : label} title={done ? "Copied" : label}
      onClick={() => void navigator.clipboard.writeText(text).then(() => {
        setDone(true);
        setTimeout(() => setDone(false), 1500);
      })}
    />
  );
}

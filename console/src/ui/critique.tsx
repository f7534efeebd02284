import type { Critique, Step } from "../api/types";
import { readSoFar, type StepSoFar } from "../lib/critique";
import { diffWords } from "../lib/diff";
import { percent } from "../lib/format";
import { VerdictBadge, cx } from "./basics";
import { Icon } from "./icons";

const MARKS = { correct: "check", incorrect: "cross", unparsed: "question" } as const;
const SPOKEN = { correct: "Correct step", incorrect: "Incorrect step", unparsed: "Step without a verdict" } as const;

export function Steps({ steps, live }: { steps: (Step | StepSoFar)[]; live?: boolean }) {
  if (!steps.length) return null;
  return (
    <ol class="steps">
      {steps.map((step, place) => (
        <li key={place} class={cx("step", step.verdict && `step-${step.verdict}`)}>
          <span class="step-mark">
            {step.verdict ? <Icon name={MARKS[step.verdict]} size={13} /> : <span class="small">{place + 1}</span>}
            {step.verdict && <span class="sr-only">{SPOKEN[step.verdict]}: </span>}
          </span>
          <p class={cx("step-text", live && place === steps.length - 1 && !step.explanation && "caret")}>{step.text}</p>
          {step.explanation && (
            <p class={cx("step-why", live && place === steps.length - 1 && "caret")}>{step.explanation}</p>
          )}
        </li>
      ))}
    </ol>
  );
}

export function Confidence({ verdict, confidence, calibrated }: {
  verdict: string | null;
  confidence: number | null | undefined;
  calibrated?: number | null | undefined;
}) {
  const shown = calibrated ?? confidence;
  if (shown === null || shown === undefined) return <span class="muted small">No confidence was read</span>;
  return (
    <div class={`confidence confidence-${verdict}`}>
      <div class="confidence-text">
        <span>{calibrated === null || calibrated === undefined ? "Confidence" : "Calibrated confidence"}</span>
        <span class="number">
          {percent(shown, 1)}
          {calibrated !== null && calibrated !== undefined && <span title="Before calibration"> (raw {percent(confidence, 1)})</span>}
        </span>
      </div>
      <div class="confidence-track" aria-hidden="true">
        <span class="confidence-fill" style={{ width: `${shown * 100}%` }} />
      </div>
    </div>
  );
}

export function CritiqueBody({ critique }: { critique: Pick<Critique, "steps" | "explanation" | "verdict" | "confidence" | "calibrated_confidence" | "text" | "verdict_source"> }) {
  return (
    <div class="stack">
      <div class="verdict-line">
        <VerdictBadge verdict={critique.verdict} />
        <Confidence verdict={critique.verdict} confidence={critique.confidence} calibrated={critique.calibrated_confidence} />
      </div>
      {critique.steps.length > 0 || critique.explanation ? (
        <>
          <Steps steps={critique.steps} />
          {critique.explanation && <p class="text">{critique.explanation}</p>}
        </>
      ) : (
        <p class="text">{critique.text}</p>
      )}
      {critique.verdict_source === "read" && (
        <p class="small muted">The text states no single verdict; this one is the likelier of the two words in the engine.</p>
      )}
      {(critique.steps.length > 0 || critique.explanation) && (
        <details>
          <summary>Text as written</summary>
          <pre class="block" tabIndex={0}>{critique.text}</pre>
        </details>
      )}
    </div>
  );
}

/** A critique while its text arrives. */
export function StreamingCritique({ text }: { text: string }) {
  const { steps, verdict, explanation } = readSoFar(text);
  return (
    <div class="stack" aria-busy="true">
      <div class="verdict-line">
        {verdict ? <VerdictBadge verdict={verdict} /> : <span class="muted small">Reading the answer…</span>}
      </div>
      <Steps steps={steps} live={!verdict} />
      {verdict && <p class="text caret">{explanation}</p>}
    </div>
  );
}

export function Diff({ before, after }: { before: string; after: string }) {
  if (before === after) return <p class="diff">{after}</p>;
  return (
    <p class="diff">
      {diffWords(before, after).map((piece, place) =>
        piece.kind === "same" ? piece.text
          : piece.kind === "added" ? <ins key={place}>{piece.text}</ins>
          : <del key={place}>{piece.text}</del>,
      )}
    </p>
  );
}

export function Exchange({ question, response }: { question: string; response: string | null }) {
  return (
    <div class="exchange">
      <div class="exchange-part">
        <h2>Question</h2>
        <p class="exchange-text">{question}</p>
      </div>
      <div class="exchange-part">
        <h2>Answer</h2>
        {response === null ? <p class="muted">No answer was stored with this question.</p> : <div class="answer-text">{response}</div>}
      </div>
    </div>
  );
}

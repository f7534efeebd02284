// Reads a critique while it streams in; the parsed steps of the service replace this once the answer is complete.
export type Verdict = "correct" | "incorrect" | "unparsed";

export interface StepSoFar {
  text: string;
  verdict: Verdict | null; // null: not written yet
  explanation: string;
}

const FIELD = /^[\s>*#-]*(step sentence|correctness of the step|correctness of the final answer|explanation)\**\s*:\s*\**/gim;

export function readSoFar(text: string): { steps: StepSoFar[]; verdict: Verdict | null; explanation: string } {
  const steps: StepSoFar[] = [];
  let verdict: Verdict | null = null;
  let explanation = "";
  let final = false;
  const marks = [...text.matchAll(FIELD)];
  const first = marks[0]?.index ?? text.length;
  const opening = text.slice(0, first).trim();
  if (opening) steps.push({ text: opening, verdict: null, explanation: "" });
  marks.forEach((mark, place) => {
    const value = text.slice(mark.index + mark[0].length, marks[place + 1]?.index ?? text.length).trim();
    const last = steps.at(-1);
    switch (mark[1]!.toLowerCase()) {
      case "step sentence":
        steps.push({ text: value, verdict: null, explanation: "" });
        break;
      case "correctness of the step":
        if (last) last.verdict = word(value);
        break;
      case "correctness of the final answer":
        verdict = word(value);
        final = true;
        break;
      default:
        if (final) explanation = value;
        else if (last) last.explanation = value;
    }
  });
  return { steps, verdict, explanation };
}

function word(text: string): Verdict | null {
  const found = /^\W*(correct|right|incorrect|wrong)\b/i.exec(text)?.[1]?.toLowerCase();
  if (!found) return text ? "unparsed" : null;
  return found === "correct" || found === "right" ? "correct" : "incorrect";
}

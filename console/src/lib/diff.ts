export interface Piece {
  kind: "same" | "added" | "removed";
  text: string;
}

const LIMIT = 1_500; // words on each side: the table below has their product

function tokens(text: string): string[] {
  return text.match(/\s+|[\p{L}\p{N}_]+(?:[.,]\d+)*|[^\s\p{L}\p{N}_]/gu) ?? [];
}

/** What changed between two texts, word by word: the longest common subsequence stays, the rest is removed or added. */
export function diffWords(before: string, after: string): Piece[] {
  const a = tokens(before);
  const b = tokens(after);
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start++;
  let endA = a.length;
  let endB = b.length;
  while (endA > start && endB > start && a[endA - 1] === b[endB - 1]) {
    endA--;
    endB--;
  }
  const pieces: Piece[] = [];
  push(pieces, "same", a.slice(0, start).join(""));
  middle(pieces, a.slice(start, endA), b.slice(start, endB));
  push(pieces, "same", a.slice(endA).join(""));
  return pieces;
}

function middle(pieces: Piece[], a: string[], b: string[]): void {
  if (a.length > LIMIT || b.length > LIMIT) {
    push(pieces, "removed", a.join(""));
    push(pieces, "added", b.join(""));
    return;
  }
  const width = b.length + 1;
  const lengths = new Uint16Array((a.length + 1) * width); // of the longest common subsequence of the rests
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      lengths[i * width + j] =
        a[i] === b[j]
          ? lengths[(i + 1) * width + j + 1]! + 1
          : Math.max(lengths[(i + 1) * width + j]!, lengths[i * width + j + 1]!);
    }
  }
  let i = 0;
  let j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) {
      push(pieces, "same", a[i++]!);
      j++;
    } else if (i < a.length && (j >= b.length || lengths[(i + 1) * width + j]! >= lengths[i * width + j + 1]!)) {
      push(pieces, "removed", a[i++]!);
    } else {
      push(pieces, "added", b[j++]!);
    }
  }
}

function push(pieces: Piece[], kind: Piece["kind"], text: string): void {
  if (!text) return;
  const last = pieces.at(-1);
  if (last?.kind === kind) last.text += text;
  else pieces.push({ kind, text });
}

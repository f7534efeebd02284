// Charts as plain SVG. Each has a name for screen readers, and its numbers as a table behind "Numbers".
import { useEffect, useId, useRef, useState } from "preact/hooks";
import type { ComponentChildren } from "preact";

export interface Point {
  x: number;
  y: number;
  low?: number | undefined;
  high?: number | undefined;
  note?: string | undefined; // shown with the value
}

export interface Series {
  name: string;
  color: number; // 0 to 5
  points: Point[];
  dots?: boolean;
}

export interface Mark {
  x: number;
  text: string;
  tone?: "good" | "bad" | undefined;
}

interface Props {
  label: string;
  series: Series[];
  marks?: Mark[];
  height?: number;
  yRange?: [number, number];
  formatY?: (value: number) => string;
  formatX?: (value: number) => string;
  xName: string;
  gap?: number; // points that are further apart are not connected
  legend?: boolean;
}

const LEFT = 44;
const BOTTOM = 22;
const TOP = 10;

export function useWidth(): [{ current: HTMLDivElement | null }, number] {
  const element = useRef<HTMLDivElement>(null);
  const [width, setWidth] = useState(600);
  useEffect(() => {
    const observer = new ResizeObserver(([entry]) => entry && setWidth(Math.max(160, entry.contentRect.width)));
    observer.observe(element.current!);
    return () => observer.disconnect();
  }, []);
  return [element, width];
}

export function LineChart({ label, series, marks = [], height = 220, yRange, formatY = short, formatX = short, xName, gap = Infinity, legend = true }: Props) {
  const [box, width] = useWidth();
  const [cursor, setCursor] = useState<number | null>(null);
  const id = useId();
  const shown = series.filter((each) => each.points.length);
  const xs = [...new Set(shown.flatMap((each) => each.points.map((point) => point.x)))].sort((a, b) => a - b);
  const all = shown.flatMap((each) => each.points.flatMap((point) => [point.y, point.low ?? point.y, point.high ?? point.y]));
  if (!xs.length) return <p class="muted small">No points yet.</p>;
  let [xMin, xMax] = [Math.min(...xs, ...marks.map((mark) => mark.x)), Math.max(...xs, ...marks.map((mark) => mark.x))];
  if (xMin === xMax) [xMin, xMax] = [xMin - 1, xMax + 1];
  const ticks = yRange ? niceTicks(yRange[0], yRange[1], 4) : niceTicks(Math.min(...all), Math.max(...all), 4);
  const yMin = yRange?.[0] ?? ticks[0]!;
  const yMax = yRange?.[1] ?? ticks.at(-1)!;
  const x = (value: number) => LEFT + ((value - xMin) / (xMax - xMin)) * (width - LEFT - 10);
  const y = (value: number) => TOP + (1 - (Math.min(Math.max(value, yMin), yMax) - yMin) / (yMax - yMin)) * (height - TOP - BOTTOM);
  const at = cursor === null ? null : xs[cursor]!;

  const move = (event: PointerEvent) => {
    const left = (event.currentTarget as Element).getBoundingClientRect().left;
    const value = xMin + ((event.clientX - left - LEFT) / (width - LEFT - 10)) * (xMax - xMin);
    setCursor(xs.reduce((best, each, place) => (Math.abs(each - value) < Math.abs(xs[best]! - value) ? place : best), 0));
  };
  const onKey = (event: KeyboardEvent) => {
    const step = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
    if (!step) return;
    event.preventDefault();
    setCursor((old) => Math.min(xs.length - 1, Math.max(0, (old ?? (step > 0 ? -1 : xs.length)) + step)));
  };

  return (
    <div class="chart" ref={box}>
      {legend && shown.length > 1 && <Legend series={shown} />}
      <svg
        height={height} viewBox={`0 0 ${width} ${height}`} role="img" aria-label={`${label}. ${summary(shown, formatY)}`} tabIndex={0}
        aria-describedby={id} onPointerMove={move} onPointerLeave={() => setCursor(null)} onKeyDown={onKey} onBlur={() => setCursor(null)}
      >
        {ticks.map((tick) => (
          <g key={tick}>
            <line class="grid" x1={LEFT} x2={width - 10} y1={y(tick)} y2={y(tick)} />
            <text x={LEFT - 8} y={y(tick) + 4} text-anchor="end">{formatY(tick)}</text>
          </g>
        ))}
        {xTicks(xMin, xMax, Math.max(2, Math.floor(width / 130))).map((tick, place, ticksX) => (
          <text key={tick} x={x(tick)} y={height - 5} text-anchor={place === 0 ? "start" : place === ticksX.length - 1 ? "end" : "middle"}>
            {formatX(tick)}
          </text>
        ))}
        {marks.map((mark, place) => (
          <g key={place} class={mark.tone === "bad" ? "bad-text" : "muted"}>
            <line class="mark" x1={x(mark.x)} x2={x(mark.x)} y1={TOP} y2={height - BOTTOM} />
            <circle cx={x(mark.x)} cy={TOP} r={4} fill="currentcolor"><title>{mark.text}</title></circle>
          </g>
        ))}
        {shown.map((each) => (
          <g key={each.name} class={`series-${each.color % 6}`}>
            {segments(each.points, gap).filter((part) => part[0]!.low !== undefined).map((part) => part.length > 1 ? (
              <polygon key={part[0]!.x} class="band" fill="currentcolor" points={bandPoints(part, x, y)} />
            ) : (
              <line key={part[0]!.x} class="whisker" stroke="currentcolor" x1={x(part[0]!.x)} x2={x(part[0]!.x)} y1={y(part[0]!.low!)} y2={y(part[0]!.high!)} />
            ))}
            {segments(each.points, gap).map((part) => (
              <polyline key={part[0]!.x} class="line" stroke="currentcolor" points={part.map((point) => `${x(point.x)},${y(point.y)}`).join(" ")} />
            ))}
            {(each.dots ?? each.points.length < 30) &&
              each.points.map((point) => <circle key={point.x} cx={x(point.x)} cy={y(point.y)} r={2.6} fill="currentcolor" />)}
          </g>
        ))}
        {at !== null && <line class="cursor" x1={x(at)} x2={x(at)} y1={TOP} y2={height - BOTTOM} />}
        {at !== null && shown.map((each) => {
          const point = each.points.find((one) => one.x === at);
          return point && <circle key={each.name} class={`series-${each.color % 6}`} cx={x(at)} cy={y(point.y)} r={4.5} fill="currentcolor" />;
        })}
      </svg>
      {at !== null && (
        <div class="tip" role="status" style={{ top: "8px", ...(x(at) < width / 2 ? { left: `${x(at) + 12}px` } : { right: `${width - x(at) + 12}px` }) }}>
          <strong>{xName} {formatX(at)}</strong>
          {shown.map((each) => {
            const point = each.points.find((one) => one.x === at);
            return point && (
              <div key={each.name} class={`series-${each.color % 6}`}>
                <span>{each.name}</span>
                <span>
                  {formatY(point.y)}
                  {point.low !== undefined && ` [${formatY(point.low)}, ${formatY(point.high!)}]`}
                  {point.note && ` · ${point.note}`}
                </span>
              </div>
            );
          })}
          {marks.filter((mark) => Math.abs(x(mark.x) - x(at)) < 6).map((mark, place) => <p key={place}>{mark.text}</p>)}
        </div>
      )}
      <details class="small" id={id}>
        <summary>Numbers</summary>
        <div class="table-scroll">
          <table>
            <caption class="sr-only">{label}</caption>
            <thead>
              <tr><th>{xName}</th>{shown.map((each) => <th key={each.name} class="number">{each.name}</th>)}</tr>
            </thead>
            <tbody>
              {sample(xs, 60).map((value) => (
                <tr key={value}>
                  <td>{formatX(value)}</td>
                  {shown.map((each) => {
                    const point = each.points.find((one) => one.x === value);
                    return <td key={each.name} class="number">{point ? formatY(point.y) : ""}{point?.note && ` (${point.note})`}</td>;
                  })}
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      </details>
    </div>
  );
}

function Legend({ series }: { series: Series[] }) {
  return (
    <ul class="legend-list">
      {series.map((each) => (
        <li key={each.name}>
          <span class={`swatch series-${each.color % 6}`} />
          {each.name}
        </li>
      ))}
    </ul>
  );
}

function summary(series: Series[], format: (value: number) => string): string {
  return series.map((each) => `${each.name}: ${format(each.points[0]!.y)} to ${format(each.points.at(-1)!.y)}`).join("; ");
}

function sample<T>(items: T[], most: number): T[] {
  const step = Math.ceil(items.length / most);
  return items.filter((_, place) => place % step === 0 || place === items.length - 1);
}

function segments(points: Point[], gap: number): Point[][] {
  const parts: Point[][] = [];
  points.forEach((point, place) => {
    if (place === 0 || point.x - points[place - 1]!.x > gap) parts.push([point]);
    else parts.at(-1)!.push(point);
  });
  return parts;
}

function bandPoints(points: Point[], x: (value: number) => number, y: (value: number) => number): string {
  const upper = points.map((point) => `${x(point.x)},${y(point.high ?? point.y)}`);
  const lower = points.map((point) => `${x(point.x)},${y(point.low ?? point.y)}`).reverse();
  return [...upper, ...lower].join(" ");
}

export function niceTicks(low: number, high: number, parts: number): number[] {
  if (low === high) [low, high] = low === 0 ? [0, 1] : [low - Math.abs(low) * 0.1, high + Math.abs(high) * 0.1];
  const raw = (high - low) / parts;
  const magnitude = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * magnitude).find((each) => each >= raw)!;
  const ticks: number[] = [];
  for (let tick = Math.floor(low / step + 1e-9) * step; ; tick += step) {
    ticks.push(Number(tick.toPrecision(10)));
    if (tick >= high - step * 1e-6) return ticks;
  }
}

function xTicks(low: number, high: number, most: number): number[] {
  const parts = Math.min(most, 6);
  return Array.from({ length: parts }, (_, place) => low + ((high - low) * place) / (parts - 1));
}

function short(value: number): string {
  if (value === 0) return "0";
  const magnitude = Math.abs(value);
  if (magnitude >= 1000) return `${Number((value / 1000).toPrecision(3))}k`;
  if (magnitude < 0.001) return value.toExponential(0);
  return String(Number(value.toPrecision(3)));
}

/** A difference with its interval, on a scale with 0 and, where the gate has one, the margin. */
export function Interval({ name, value, low, high, scale, margin, shown, tone }: {
  name: ComponentChildren;
  value: number;
  low: number;
  high: number;
  scale: [number, number];
  margin?: number | undefined;
  shown: string;
  tone: "good" | "bad" | "warn" | "plain";
}) {
  const [from, to] = scale;
  const x = (at: number) => `${(((Math.min(Math.max(at, from), to) - from) / (to - from)) * 100).toFixed(2)}%`;
  const color = { good: "var(--good)", bad: "var(--bad)", warn: "var(--warn)", plain: "var(--accent)" }[tone];
  return (
    <div class="interval">
      <div class="interval-name">{name}</div>
      <div class="interval-plot" aria-hidden="true">
        <svg preserveAspectRatio="none">
          <line x1="0" x2="100%" y1="50%" y2="50%" stroke="var(--border)" />
          {margin !== undefined && (
            <line x1={x(margin)} x2={x(margin)} y1="10%" y2="90%" stroke="var(--warn)" stroke-dasharray="3 3">
              <title>margin</title>
            </line>
          )}
          {from < 0 && to > 0 && <line x1={x(0)} x2={x(0)} y1="5%" y2="95%" stroke="var(--border-strong)" />}
          <line x1={x(low)} x2={x(high)} y1="50%" y2="50%" stroke={color} stroke-width="5" stroke-linecap="round" opacity="0.4" />
          <circle cx={x(value)} cy="50%" r="5" fill={color} />
        </svg>
      </div>
      <div class="interval-value">{shown}</div>
    </div>
  );
}

/** How often answers with a stated probability are right: on the diagonal, the probability can be trusted. */
export function Reliability({ label, curves }: {
  label: string;
  curves: { name: string; color: number; bins: { mean_p: number; right: number; items: number; traffic_share: number }[] }[];
}) {
  const size = 280;
  const at = (value: number) => 34 + value * (size - 44);
  const up = (value: number) => size - 28 - value * (size - 44);
  return (
    <div class="chart">
      <Legend series={curves.map((curve) => ({ ...curve, points: [] }))} />
      <svg
        viewBox={`0 0 ${size} ${size}`} style={{ maxWidth: "380px" }} role="img"
        aria-label={`${label}. ${curves.map((curve) => `${curve.name}: ${curve.bins.map((bin) => `${bin.mean_p.toFixed(2)} said, ${bin.right.toFixed(2)} right`).join(", ")}`).join("; ")}`}
      >
        {[0, 0.25, 0.5, 0.75, 1].map((tick) => (
          <g key={tick}>
            <line class="grid" x1={at(0)} x2={at(1)} y1={up(tick)} y2={up(tick)} />
            <text x={at(0) - 6} y={up(tick) + 4} text-anchor="end">{tick * 100}</text>
            <text x={at(tick)} y={size - 12} text-anchor="middle">{tick * 100}</text>
          </g>
        ))}
        <text x={at(0.5)} y={size} text-anchor="middle">stated probability, %</text>
        <line class="mark" x1={at(0)} y1={up(0)} x2={at(1)} y2={up(1)} />
        {curves.map((curve) => (
          <g key={curve.name} class={`series-${curve.color}`}>
            <polyline class="line" stroke="currentcolor" points={curve.bins.map((bin) => `${at(bin.mean_p)},${up(bin.right)}`).join(" ")} />
            {curve.bins.map((bin) => (
              <circle key={bin.mean_p} cx={at(bin.mean_p)} cy={up(bin.right)} r={3 + 9 * Math.sqrt(bin.traffic_share)} fill="currentcolor" fill-opacity="0.75">
                <title>{`stated ${(bin.mean_p * 100).toFixed(0)} %, right ${(bin.right * 100).toFixed(0)} %, ${bin.items} judgements`}</title>
              </circle>
            ))}
          </g>
        ))}
      </svg>
    </div>
  );
}

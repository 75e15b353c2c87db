// Counts in bins of equal width, as bars over an axis.

import { svg } from "./dom.js";
import { sizeOf } from "./plot.js";
import { linear, padded, ticks } from "./scale.js";

const EDGE = 14;
const TOP = 6;
const AXIS = 24;

/** Draw `{low, high, counts}` into an svg element; null draws an empty axis. */
export function drawHistogram(element, histogram) {
  const { width, height } = sizeOf(element);
  element.setAttribute("viewBox", `0 0 ${width} ${height}`);
  if (histogram === null) {
    element.replaceChildren();
    return;
  }
  const { counts } = histogram;
  // Errors that are all alike are one bar in the middle.
  const [low, high] = histogram.low === histogram.high ? padded(histogram.low, histogram.high) : [histogram.low, histogram.high];
  const floor = height - AXIS;
  const toX = linear(low, high, EDGE, width - EDGE);
  const toY = linear(0, Math.max(...counts), floor, TOP);
  const bar = histogram.low === histogram.high ? 6 : (width - 2 * EDGE) / counts.length;
  const first = histogram.low === histogram.high ? toX(histogram.low) - bar / 2 : EDGE;
  const bars = counts.map((count, index) =>
    svg("rect", { x: first + index * bar + 0.5, width: Math.max(1, bar - 1), y: toY(count), height: floor - toY(count) }),
  );
  const axis = ticks(low, high, Math.max(2, width / 90)).flatMap(({ value, label }) => [
    svg("path", { class: "tick", d: `M${toX(value)} ${floor}v4` }),
    svg("text", { x: toX(value), y: floor + 16, "text-anchor": "middle" }, label),
  ]);
  element.replaceChildren(
    svg("g", { class: "bars" }, ...bars),
    svg("g", { class: "axes" }, svg("path", { class: "tick", d: `M${EDGE} ${floor + 0.5}H${width - EDGE}` }), ...axis),
  );
}

// One curve over x, as SVG: axes, grid, the line, and a marker that can be placed on it.

import { svg } from "./dom.js";
import { linear, padded, rangeOf, ticks } from "./scale.js";

/** Room around the drawing, in pixels; style.css sets the slider under the plots between the same two edges. */
const LEFT = 52;
const RIGHT = 14;
const TOP = 8;
const AXIS = 26;
/** More levels than this would be a solid bar at the edge. */
const MOST_MARKS = 64;

/**
 * Draw `y` over `x` into an svg element. `tone` names its colour, `levels` are marked at the right edge,
 * `diagonal` adds the line y = x, `include` are values that the axis must show. Returns `place(index)`,
 * which moves the marker, and `outside`, the number of finite values that the picture leaves out.
 */
export function draw(element, { x, y, tone, levels = [], diagonal = false, include = [] }) {
  const { width, height } = sizeOf(element);
  const range = rangeOf(y);
  const [low, high] = range ? padded(Math.min(range.low, ...include), Math.max(range.high, ...include)) : [0, 1];
  const toX = linear(x[0], x.at(-1), LEFT, width - RIGHT);
  const toY = linear(low, high, height - AXIS, TOP);
  const marker = markerOf(tone, height);
  const clip = `${element.id}-area`;
  element.setAttribute("viewBox", `0 0 ${width} ${height}`);
  element.replaceChildren(
    svg("clipPath", { id: clip }, svg("rect", { x: LEFT, y: TOP, width: width - LEFT - RIGHT, height: height - AXIS - TOP })),
    grid(x, [low, high], { toX, toY, width, height }),
    svg(
      "g",
      { "clip-path": `url(#${clip})` },
      diagonal ? svg("path", { class: "diagonal", d: line([x[0], x.at(-1)], [x[0], x.at(-1)], toX, toY) }) : "",
      svg("path", { class: `line ${tone}`, d: pathOf(x, y, toX, toY) }),
    ),
    marks(levels, toY, width, tone),
    marker.element,
  );
  return {
    place: (index) => marker.place(toX(x[index]), Number.isFinite(y[index]) && y[index] >= low && y[index] <= high ? toY(y[index]) : null),
    outside: range?.outside ?? 0,
  };
}

/** Which of `count` evenly spaced samples lies under the pointer. */
export function indexAt(element, event, count) {
  const box = element.getBoundingClientRect();
  const share = (event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT);
  return Math.round(Math.min(1, Math.max(0, share)) * (count - 1));
}

/** The size of an element in CSS pixels, in which it is drawn: text and lines keep their size. */
export function sizeOf(element) {
  const { width, height } = element.getBoundingClientRect();
  return { width: Math.max(160, Math.round(width)), height: Math.max(60, Math.round(height)) };
}

function grid(x, [low, high], { toX, toY, width, height }) {
  const floor = height - AXIS;
  const across = ticks(low, high, Math.max(2, (floor - TOP) / 48)).flatMap(({ value, label }) => [
    svg("path", { class: value === 0 ? "zero" : "rule", d: `M${LEFT} ${crisp(toY(value))}H${width - RIGHT}` }),
    svg("text", { x: LEFT - 8, y: toY(value), "text-anchor": "end", "dominant-baseline": "central" }, label),
  ]);
  const along = ticks(x[0], x.at(-1), Math.max(3, (width - LEFT) / 90)).flatMap(({ value, label }) => [
    svg("path", { class: "tick", d: `M${crisp(toX(value))} ${floor}v5` }),
    svg("text", { x: toX(value), y: floor + 17, "text-anchor": "middle" }, label),
  ]);
  return svg("g", { class: "axes" }, ...across, ...along, svg("path", { class: "tick", d: `M${LEFT} ${crisp(floor)}H${width - RIGHT}` }));
}

function marks(levels, toY, width, tone) {
  const d = levels.length <= MOST_MARKS ? levels.map((level) => `M${width - RIGHT + 4} ${toY(level).toFixed(1)}h6`).join("") : "";
  return svg("path", { class: `marks ${tone}`, d });
}

function markerOf(tone, height) {
  const rule = svg("path", { class: "cross" });
  const dot = svg("circle", { class: `dot ${tone}`, r: 4 });
  return {
    element: svg("g", {}, rule, dot),
    place(left, top) {
      rule.setAttribute("d", `M${crisp(left)} ${TOP}V${height - AXIS}`);
      dot.setAttribute("visibility", top === null ? "hidden" : "visible");
      if (top !== null) {
        dot.setAttribute("cx", left);
        dot.setAttribute("cy", top);
      }
    },
  };
}

/**
 * The line as path data. Of the samples within one column of pixels only the first, the least, the greatest and
 * the last are drawn, which gives the same picture; where y is not finite the line is broken.
 */
function pathOf(x, y, toX, toY) {
  const pieces = [];
  for (let start = 0; start < x.length; ) {
    const column = Math.floor(toX(x[start]));
    let stop = start + 1;
    while (stop < x.length && Math.floor(toX(x[stop])) === column && Number.isFinite(y[stop]) === Number.isFinite(y[start])) stop++;
    pieces.push(Number.isFinite(y[start]) ? extremesOf(y, start, stop) : []);
    start = stop;
  }
  let d = "";
  for (const indices of pieces) {
    if (indices.length === 0) d += " ";
    for (const index of indices) d += `${d === "" || d.endsWith(" ") ? "M" : "L"}${toX(x[index]).toFixed(2)} ${toY(y[index]).toFixed(2)}`;
  }
  return d.trim();
}

function extremesOf(y, start, stop) {
  let [least, greatest] = [start, start];
  for (let index = start; index < stop; index++) {
    if (y[index] < y[least]) least = index;
    if (y[index] > y[greatest]) greatest = index;
  }
  return [...new Set([start, least, greatest, stop - 1])].sort((one, other) => one - other);
}

function line(x, y, toX, toY) {
  return x.map((value, index) => `${index === 0 ? "M" : "L"}${toX(value)} ${toY(y[index])}`).join("");
}

/** The middle of a pixel: a line of one pixel is then sharp. */
function crisp(value) {
  return Math.round(value - 0.5) + 0.5;
}

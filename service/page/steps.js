// A curve in words and as rows of a table: what a picture says to those who do not see it.

import { levelsOf } from "./statistics.js";
import { showAmount, showCount, showNumber } from "./words.js";

/** A curve of which more than this share of samples differ has no steps that could be told apart. */
const STAIRCASE_SHARE = 0.25;
const MOST_ROWS = 64;
const SAMPLED_ROWS = 33;

/** What there is to say of a curve: its levels (none where it has no steps), its extent, its gradient. */
export function describe({ x, y, gradient }) {
  const finite = y.filter(Number.isFinite);
  const count = levelsOf(y) ?? Infinity;
  const isStaircase = finite.length > 0 && count <= y.length * STAIRCASE_SHARE;
  const levels = isStaircase ? [...new Set(finite)].sort((one, other) => one - other) : [];
  const gradients = [...new Set(gradient)].sort((one, other) => one - other);
  return { levels, isStaircase, lost: y.length - finite.length, extent: extentOf(finite), gradients, x };
}

/** That, as sentences. */
export function inWords(description, outside) {
  const { levels, isStaircase, lost, extent, x } = description;
  const over = `for x from ${showNumber(x[0])} to ${showNumber(x.at(-1))}`;
  const sentences = [];
  if (extent === null) sentences.push(`y has no finite value ${over}: there is nothing to draw.`);
  else if (isStaircase) sentences.push(`y takes ${showAmount(levels.length, "level")}, from ${showNumber(extent[0])} to ${showNumber(extent[1])}${showSpacing(levels)}, ${over}.`);
  else sentences.push(`y runs from ${showNumber(extent[0])} to ${showNumber(extent[1])} ${over}, without steps that could be told apart here.`);
  sentences.push(`The gradient is ${showGradients(description)}.`);
  if (extent !== null && lost > 0) sentences.push(`${showCount(lost)} of ${showCount(x.length)} values of y are NaN or infinite, and are not drawn.`);
  if (outside > 0) sentences.push(`${showAmount(outside, "value")} at the ends lie far outside of the picture.`);
  return sentences.join(" ");
}

/** How far the levels lie apart, where they all lie equally far. */
function showSpacing(levels) {
  const spacing = (levels.at(-1) - levels[0]) / (levels.length - 1);
  const isEven = levels.length > 2 && levels.every((level, index) => Math.abs(level - levels[0] - index * spacing) < 0.01 * spacing);
  return isEven ? ` and ${showNumber(spacing)} apart` : "";
}

/** The values that the gradient has: each of them where they are few, else from least to greatest. */
export function showGradients({ gradients }) {
  const shown = [...new Set(gradients.map((value) => showNumber(value)))];
  if (shown.length <= 3) return shown.join(" or ");
  const extent = extentOf(gradients.filter(Number.isFinite));
  return extent === null ? "nowhere finite" : `${showNumber(extent[0])} to ${showNumber(extent[1])}`;
}

/** Rows `[x from, x to, y, gradient]`: one for each tread of the staircase, or samples where it has too many. */
export function rows({ x, y, gradient }) {
  const treads = [];
  for (let index = 0; index < x.length && treads.length <= MOST_ROWS; index++) {
    const last = treads.at(-1);
    if (last && isSame(last[2], y[index]) && isSame(last[3], gradient[index])) last[1] = x[index];
    else treads.push([x[index], x[index], y[index], gradient[index]]);
  }
  if (treads.length <= MOST_ROWS) return treads;
  return Array.from({ length: SAMPLED_ROWS }, (_, row) => {
    const index = Math.round((row * (x.length - 1)) / (SAMPLED_ROWS - 1));
    return [x[index], x[index], y[index], gradient[index]];
  });
}

/** Equal, or both NaN; zeros of both signs are one level. */
function isSame(one, other) {
  return one === other || (Number.isNaN(one) && Number.isNaN(other));
}

function extentOf(values) {
  return values.length === 0 ? null : [values.reduce((one, other) => Math.min(one, other)), values.reduce((one, other) => Math.max(one, other))];
}

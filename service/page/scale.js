// From values to pixels, and the round values at which an axis has its ticks.

import { showNumber } from "./words.js";

/** The straight line that takes `low` to `start` and `high` to `stop`. */
export function linear(low, high, start, stop) {
  const factor = (stop - start) / (high - low);
  return (value) => start + (value - low) * factor;
}

/** Multiples of 1, 2 or 5 times a power of ten within the range, about `count` of them. */
export function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * (1 - 1e-9));
  const found = [];
  for (let index = Math.ceil(low / step - 1e-9); index * step <= high + step * 1e-9; index++) found.push(index * step);
  return found.map((value) => ({ value, label: showNumber(Math.abs(value) < step / 2 ? 0 : value, 6) }));
}

/** A fifth of a thousandth at either end may be left out of a picture, where that makes it so many times larger. */
const OUTLIER_SHARE = 0.0005;
const OUTLIER_FACTOR = 8;

/**
 * The range that a picture of these values should have, and how many finite values lie outside of it: the ends
 * of a tensor may have gradients thousands of times those of its middle. Null when no value is finite.
 */
export function rangeOf(values) {
  const finite = Float64Array.from(values.filter(Number.isFinite)).sort();
  if (finite.length === 0) return null;
  const cut = Math.ceil(finite.length * OUTLIER_SHARE);
  const whole = [finite[0], finite.at(-1)];
  const inner = finite.length > 2 * cut ? [finite[cut], finite.at(-1 - cut)] : whole;
  const isTrimmed = whole[1] - whole[0] > OUTLIER_FACTOR * Math.max(inner[1] - inner[0], Math.abs(inner[0]), Math.abs(inner[1]));
  const [low, high] = isTrimmed ? inner : whole;
  return { low, high, outside: finite.filter((value) => value < low || value > high).length };
}

/** A range with some room around it; one that is a single value gets room around that value. */
export function padded(low, high, share = 0.07) {
  const room = low === high ? Math.max(Math.abs(low), 1) / 2 : (high - low) * share;
  return [low - room, high + room];
}

// How far y lies from x, and which values y has. Everything is computed in float64; a pair of numbers is
// compared where both are finite, as `stequant stats` does it.

/** A tensor with more different values than float16 has is not quantized. */
export const MOST_LEVELS = 65536;
/** About one for five pixels on a phone. */
const BINS = 81;

/**
 * The comparison of y with x: elements, compared, nonFinite (of y), levels (null: more than MOST_LEVELS), least
 * and greatest y, largest, mean and rms error, snrDb, and a histogram of the errors, `{low, high, counts}`.
 */
export function compare(x, y) {
  const levels = levelsOf(y);
  const errors = new Float64Array(x.length);
  let [compared, nonFinite, signal, noise, sum, low, high, least, greatest] = [0, 0, 0, 0, 0, Infinity, -Infinity, Infinity, -Infinity];
  for (let index = 0; index < x.length; index++) {
    if (!Number.isFinite(y[index])) {
      nonFinite++;
      continue;
    }
    least = Math.min(least, y[index]);
    greatest = Math.max(greatest, y[index]);
    if (!Number.isFinite(x[index])) continue;
    const error = y[index] - x[index];
    errors[compared++] = error;
    signal += x[index] * x[index];
    noise += error * error;
    sum += error;
    low = Math.min(low, error);
    high = Math.max(high, error);
  }
  return {
    elements: x.length,
    compared,
    nonFinite,
    levels,
    least,
    greatest,
    largestError: compared ? Math.max(Math.abs(low), Math.abs(high)) : NaN,
    meanError: sum / compared,
    rmsError: Math.sqrt(noise / compared),
    snrDb: noise === 0 ? (signal ? Infinity : NaN) : 10 * Math.log10(signal / noise),
    histogram: compared ? histogram(errors.subarray(0, compared), low, high) : null,
  };
}

/** How many different finite values there are; null when more than MOST_LEVELS. */
export function levelsOf(values) {
  const seen = new Set();
  for (const value of values) {
    if (Number.isFinite(value)) seen.add(value);
    if (seen.size > MOST_LEVELS) return null;
  }
  return seen.size;
}

/** How many errors lie in each of equally wide bins from low to high. */
function histogram(errors, low, high) {
  if (low === high) return { low, high, counts: [errors.length] };
  const counts = new Array(BINS).fill(0);
  const scale = BINS / (high - low);
  for (const error of errors) counts[Math.min(BINS - 1, Math.floor((error - low) * scale))]++;
  return { low, high, counts };
}

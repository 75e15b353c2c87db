// Numbers as people read them.

const MINUS = "\u2212";

/** A number to so many significant digits, without needless zeros and with a real minus sign. */
export function showNumber(value, digits = 4) {
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : `${MINUS}∞`;
  const rounded = Number(value.toPrecision(digits));
  const size = Math.abs(rounded);
  const text = size !== 0 && (size < 1e-4 || size >= 1e6) ? rounded.toExponential().replace("e+", "e") : String(rounded);
  return text.replaceAll("-", MINUS);
}

/** A count with thin spaces between its thousands. */
export function showCount(value) {
  return String(Math.round(value)).replace(/\B(?=(\d{3})+$)/g, "\u202f");
}

/** So many bytes, in the largest unit that leaves a number of at least 1. */
export function showBytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const step = Math.min(units.length - 1, Math.max(0, Math.floor(Math.log2(Math.max(1, value)) / 10)));
  return `${showNumber(value / 1024 ** step, 3)} ${units[step]}`;
}

/** A time, in microseconds, milliseconds or seconds. */
export function showSeconds(value) {
  if (!Number.isFinite(value)) return "–";
  if (value < 1e-3) return `${showNumber(value * 1e6, 2)} µs`;
  return value < 1 ? `${showNumber(value * 1e3, 2)} ms` : `${showNumber(value, 2)} s`;
}

/** Decibels, to a tenth. */
export function showDecibels(value) {
  return Number.isFinite(value) ? `${showNumber(Number(value.toFixed(1)), 6)} dB` : Number.isNaN(value) ? "–" : `${showNumber(value)} dB`;
}

/** One thing, two things: a count with its noun. */
export function showAmount(count, noun) {
  return `${showCount(count)} ${noun}${count === 1 ? "" : "s"}`;
}

// The values that are sent to see what a chain does to them. Always the same ones, so that figures can be compared.

/** `count` values from `from` to `to`, evenly spaced, both ends included. */
export function sweep(from, to, count) {
  return Float64Array.from({ length: count }, (_, index) => from + ((to - from) * index) / (count - 1));
}

/** `count` values spread evenly over the range, each in the middle of its share. */
export function uniform(from, to, count) {
  return Float64Array.from({ length: count }, (_, index) => from + ((to - from) * (index + 0.5)) / count);
}

/** `count` values of a normal distribution whose range of ±3 standard deviations is from `from` to `to`. */
export function normal(from, to, count) {
  const mean = (from + to) / 2;
  const deviation = (to - from) / 6;
  const random = generator(1);
  const values = new Float64Array(count);
  for (let index = 0; index < count; index += 2) {
    // Box and Muller: two independent normal values from two uniform ones.
    const radius = Math.sqrt(-2 * Math.log(1 - random()));
    const angle = 2 * Math.PI * random();
    values[index] = mean + deviation * radius * Math.cos(angle);
    if (index + 1 < count) values[index + 1] = mean + deviation * radius * Math.sin(angle);
  }
  return values;
}

/** mulberry32: a small generator of numbers from 0 up to 1, the same ones for the same seed. */
function generator(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let bits = Math.imul(state ^ (state >>> 15), 1 | state);
    bits = (bits + Math.imul(bits ^ (bits >>> 7), 61 | bits)) ^ bits;
    return ((bits ^ (bits >>> 14)) >>> 0) / 2 ** 32;
  };
}

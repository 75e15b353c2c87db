// Numbers of sixteen bits, which typed arrays do not have: float16 and bfloat16 to JavaScript's float64 and back.

const word = new DataView(new ArrayBuffer(8));

/** The value of a float16, given its bits. */
export function fromFloat16(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1024 + fraction) * 2 ** (exponent - 25);
}

/** The bits of the float16 nearest to a number; ties go to even, and what is too large becomes infinite. */
export function toFloat16(value) {
  if (Number.isNaN(value)) return 0x7e00;
  const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0;
  const size = Math.abs(value);
  if (size >= 65520) return sign | 0x7c00;
  if (size < 2 ** -14) return sign | roundToEven(size * 2 ** 24);
  const exponent = exponentOf(size);
  // A fraction that rounds up to 2048 carries into the exponent, as it should.
  return sign | ((exponent + 14) * 1024 + roundToEven(size * 2 ** (10 - exponent)));
}

/** The value of a bfloat16, given its bits: they are the upper half of a float32. */
export function fromBfloat16(bits) {
  word.setUint32(0, bits * 65536);
  return word.getFloat32(0);
}

function exponentOf(size) {
  word.setFloat64(0, size);
  return (word.getUint16(0) >> 4) - 1023;
}

function roundToEven(value) {
  const floor = Math.floor(value);
  const rest = value - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? floor + 1 : floor;
}

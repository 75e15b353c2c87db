// .npy files of float32 and float64 in JavaScript: an array and its shape to bytes, and back.

const KINDS = { "<f4": Float32Array, "<f8": Float64Array };

/** A .npy file, version 1, in C order. `data` is a Float32Array or a Float64Array. */
export function encode(data, shape = [data.length]) {
  const descr = Object.keys(KINDS).find((name) => data instanceof KINDS[name]);
  const dimensions = shape.length === 1 ? `${shape[0]},` : shape.join(", ");
  const text = `{'descr': '${descr}', 'fortran_order': False, 'shape': (${dimensions}), }`;
  const header = text.padEnd(Math.ceil((text.length + 11) / 64) * 64 - 11) + "\n";
  const bytes = new Uint8Array(10 + header.length + data.byteLength);
  bytes.set([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0]); // \x93NUMPY, version 1.0
  new DataView(bytes.buffer).setUint16(8, header.length, true);
  bytes.set(new TextEncoder().encode(header), 10);
  bytes.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), 10 + header.length);
  return bytes;
}

/** The array in a .npy file: `{data, shape, fortranOrder}`. stequant answers little-endian, in version 1. */
export function decode(buffer) {
  const view = new DataView(buffer);
  const start = 10 + view.getUint16(8, true);
  const header = new TextDecoder("latin1").decode(new Uint8Array(buffer, 10, start - 10));
  const [, descr] = /'descr': '([^']+)'/.exec(header);
  const shape = (/'shape': \(([^)]*)\)/.exec(header)[1].match(/\d+/g) ?? []).map(Number);
  const Kind = KINDS[descr];
  if (!Kind) throw new TypeError(`the array is of dtype ${descr}; read here: ${Object.keys(KINDS).join(", ")}`);
  return { data: new Kind(buffer.slice(start)), shape, fortranOrder: header.includes("True") };
}

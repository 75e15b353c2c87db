// The .npy format, versions 1 to 3, for the four floating dtypes: bytes to arrays and back, nothing else.

import { fromBfloat16, fromFloat16, toFloat16 } from "./floats.js";

/** What a .npy file may hold here. `read` and `write` are given a DataView, a place in bytes and the byte order. */
export const DTYPES = {
  float16: {
    codes: ["f2"],
    bytes: 2,
    read: (view, at, little) => fromFloat16(view.getUint16(at, little)),
    write: (view, at, value) => view.setUint16(at, toFloat16(value), true),
  },
  bfloat16: { codes: ["V2"], bytes: 2, read: (view, at, little) => fromBfloat16(view.getUint16(at, little)) },
  float32: {
    codes: ["f4"],
    bytes: 4,
    read: (view, at, little) => view.getFloat32(at, little),
    write: (view, at, value) => view.setFloat32(at, value, true),
  },
  float64: {
    codes: ["f8"],
    bytes: 8,
    read: (view, at, little) => view.getFloat64(at, little),
    write: (view, at, value) => view.setFloat64(at, value, true),
  },
};

const MAGIC = "\x93NUMPY";
const LONGEST_HEADER_BYTES = 65536;
const nativeIsLittle = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1;

/** A file that is no .npy file of floating numbers; the message says why, for people. */
export class NpyError extends Error {}

/**
 * The arrays of a .npy stream, in order: `{dtype, shape, fortranOrder, values}`. The values are float64
 * (float32 for float32), in the order in which the file holds them. NpyError for anything else.
 */
export function decode(buffer) {
  const arrays = [];
  let offset = 0;
  do {
    const header = readHeader(buffer, offset);
    const stop = header.start + header.size * DTYPES[header.dtype].bytes;
    if (stop > buffer.byteLength) {
      throw new NpyError(`The file ends early: its header promises ${stop - header.start} bytes, ${buffer.byteLength - header.start} follow.`);
    }
    arrays.push({ dtype: header.dtype, shape: header.shape, fortranOrder: header.fortranOrder, values: readValues(buffer, header) });
    offset = stop;
  } while (offset < buffer.byteLength);
  return arrays;
}

/** A .npy file of one dimension (version 1, little-endian) that holds these numbers, rounded to the dtype. */
export function encode(dtype, values) {
  const { codes, bytes, write } = DTYPES[dtype];
  let header = `{'descr': '<${codes[0]}', 'fortran_order': False, 'shape': (${values.length},), }`;
  header = header.padEnd(Math.ceil((10 + header.length + 1) / 64) * 64 - 11) + "\n";
  const buffer = new ArrayBuffer(10 + header.length + values.length * bytes);
  const view = new DataView(buffer);
  [...MAGIC, "\x01", "\x00"].forEach((letter, at) => view.setUint8(at, letter.charCodeAt(0)));
  view.setUint16(8, header.length, true);
  for (let at = 0; at < header.length; at++) view.setUint8(10 + at, header.charCodeAt(at));
  const start = 10 + header.length;
  for (let index = 0; index < values.length; index++) write(view, start + index * bytes, values[index]);
  return buffer;
}

/** The header of the array that begins at `offset`, and where its numbers start. */
export function readHeader(buffer, offset = 0) {
  const view = new DataView(buffer, offset);
  const magic = String.fromCharCode(...new Uint8Array(buffer, offset, Math.min(6, view.byteLength)));
  if (magic !== MAGIC || view.byteLength < 12) {
    throw new NpyError(offset === 0 ? "This is not a .npy file: it does not begin as one." : "Something that is no array follows the arrays of the file.");
  }
  const version = view.getUint8(6);
  if (version < 1 || version > 3) throw new NpyError(`The file is of .npy version ${version}; versions 1 to 3 are read.`);
  const begin = version === 1 ? 10 : 12;
  const length = version === 1 ? view.getUint16(8, true) : view.getUint32(8, true);
  if (length > LONGEST_HEADER_BYTES || begin + length > view.byteLength) throw new NpyError("The header of the file is cut off, or too long.");
  const text = new TextDecoder(version === 3 ? "utf-8" : "latin1").decode(new Uint8Array(buffer, offset + begin, length));
  return { ...readDictionary(text), start: offset + begin + length };
}

function readDictionary(text) {
  const descr = /'descr'\s*:\s*('[^']*'|\[)/.exec(text);
  const order = /'fortran_order'\s*:\s*(True|False)/.exec(text);
  const dimensions = /'shape'\s*:\s*\(([\d\s,]*)\)/.exec(text);
  if (!descr || !order || !dimensions) throw new NpyError("The header of the file cannot be read.");
  const code = descr[1].replaceAll("'", "");
  const dtype = Object.keys(DTYPES).find((name) => DTYPES[name].codes.includes(code.slice(1)));
  if (!dtype) {
    const kind = code === "[" ? "a table of several dtypes" : `of dtype '${code}'`;
    throw new NpyError(`The array is ${kind}. Quantizers take floating numbers only: float16, bfloat16, float32 or float64.`);
  }
  const shape = (dimensions[1].match(/\d+/g) ?? []).map(Number);
  const size = shape.reduce((product, length) => product * length, 1);
  const little = code[0] === "<" || (code[0] !== ">" && nativeIsLittle);
  return { dtype, shape, size, little, fortranOrder: order[1] === "True" };
}

function readValues(buffer, { dtype, size, start, little }) {
  const Values = { float32: Float32Array, float64: Float64Array }[dtype];
  if (Values && little && nativeIsLittle) return new Values(buffer.slice(start, start + size * Values.BYTES_PER_ELEMENT));
  const { bytes, read } = DTYPES[dtype];
  const view = new DataView(buffer, start, size * bytes);
  const values = new (Values ?? Float64Array)(size);
  for (let index = 0; index < size; index++) values[index] = read(view, index * bytes, little);
  return values;
}

/** A shape as Python writes it: `(2, 3)`, `(4,)`, `()`. */
export function showShape(shape) {
  return shape.length === 1 ? `(${shape[0]},)` : `(${shape.join(", ")})`;
}

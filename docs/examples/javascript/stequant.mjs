// The two calls of the service, by fetch: in a browser, in Node 18 or newer, in Deno and Bun.

import { decode, encode } from "./npy.mjs";

/** `y` for an array x; rejects with the title and detail of the server's problem document. */
export async function quantize(server, op, x, shape) {
  return decode(await call(`${server}/quantize`, op, [encode(x, shape)]));
}

/** The gradient with respect to x, for that with respect to y. */
export async function grad(server, op, x, gradOutput, shape) {
  return decode(await call(`${server}/grad`, op, [encode(x, shape), encode(gradOutput, shape)]));
}

async function call(url, op, arrays) {
  const response = await fetch(`${url}?op=${encodeURIComponent(op)}`, {
    method: "POST",
    headers: { "content-type": "application/x-npy" },
    body: new Blob(arrays),
  });
  if (response.ok) return response.arrayBuffer();
  const { title, detail, code } = await response.json();
  throw Object.assign(new Error(`${title}: ${detail}`), { code, status: response.status });
}

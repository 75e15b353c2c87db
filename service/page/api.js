// The service as functions. Addresses are relative to the page, so that they hold behind any proxy.

const NPY = "application/x-npy";

/** An answer that is no success, or none at all: `title`, `detail`, `code` and `status` (0: nobody answered). */
export class Problem extends Error {
  constructor({ title, detail, code = "", status = 0 }) {
    super(`${title}: ${detail}`);
    Object.assign(this, { title, detail, code, status });
  }
}

/** Calls to one service, with a key that is kept in this object and nowhere else. */
export class Service {
  key = null;

  /** The operators, as the server describes them. */
  async operators(signal) {
    return (await (await this.#ask("operators", { signal })).json()).operators;
  }

  /** Device, dtypes and limits; given also by a server that is not ready. */
  async state(signal) {
    const response = await this.#send("readyz", { signal });
    if (response.ok || response.status === 503) return response.json();
    throw await problemOf(response);
  }

  /** The metrics, as Prometheus would read them. */
  async metrics(signal) {
    return (await this.#ask("metrics", { signal })).text();
  }

  /** The bytes of the .npy answer to `POST /quantize` or `POST /grad`; the body is a buffer, a Blob or a File. */
  async call(kind, expression, body, signal) {
    const headers = { "content-type": NPY };
    const response = await this.#ask(`${kind}?op=${encodeURIComponent(expression)}`, { method: "POST", headers, body, signal });
    return response.arrayBuffer();
  }

  async #ask(path, options) {
    const response = await this.#send(path, options);
    if (!response.ok) throw await problemOf(response);
    return response;
  }

  async #send(path, { headers = {}, ...options }) {
    const authorization = this.key === null ? {} : { authorization: `Bearer ${this.key}` };
    try {
      return await fetch(path, { ...options, headers: { ...headers, ...authorization }, cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      const detail = "It may have stopped, or the network is down. Nothing is lost: it is asked again every few seconds.";
      throw new Problem({ title: "The server does not answer", detail });
    }
  }
}

async function problemOf(response) {
  const { status } = response;
  try {
    const { title, detail, code } = await response.json();
    return new Problem({ title, detail, code, status });
  } catch {
    return new Problem({ title: "The answer cannot be read", detail: `Something between here and the server answered with status ${status}.`, status });
  }
}

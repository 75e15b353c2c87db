// A file through the chain: sent to the server as it is, the answer compared with it and offered for saving.

import { byId, html } from "./dom.js";
import { figuresOf } from "./errors.js";
import { figure } from "./figures.js";
import { decode, NpyError, readHeader, showShape } from "./npy.js";
import { showProblem } from "./notice.js";
import { compare } from "./statistics.js";
import { showBytes } from "./words.js";

/** Files up to this size follow every change of the chain; larger ones wait for a button. */
const AUTOMATIC_BYTES = 4 * 2 ** 20;
/** Larger answers are offered for saving only: to compare them takes seconds and several times their memory. */
const COMPARED_BYTES = 128 * 2 ** 20;
/** More than the longest header that is read. */
const HEAD_BYTES = 2 ** 17;

/** The section of the page that takes a file. `onCompared(comparison, expression, name)` is called when there is one. */
export class FileView {
  #service;
  #onCompared;
  #file = null;
  #expression = null;
  #link = null;
  #running = null;
  limitBytes = Infinity;

  constructor(service, onCompared) {
    this.#service = service;
    this.#onCompared = onCompared;
    const drop = byId("drop");
    byId("file").addEventListener("change", () => this.#choose(byId("file").files[0]));
    // A file that misses the field must not replace the page.
    for (const kind of ["dragover", "drop"]) addEventListener(kind, (event) => event.preventDefault());
    addEventListener("dragover", () => drop.classList.add("is-aimed-at"));
    addEventListener("dragleave", (event) => event.relatedTarget || drop.classList.remove("is-aimed-at"));
    addEventListener("drop", (event) => {
      drop.classList.remove("is-aimed-at");
      this.#choose(event.dataTransfer.files[0]);
    });
  }

  /** The name of the file that was chosen, or null. */
  get name() {
    return this.#file?.name ?? null;
  }

  /** The chain has changed; null while it is none that could be sent. */
  follow(expression) {
    if (expression === this.#expression) return;
    this.#expression = expression;
    if (this.#file === null || expression === null) return;
    if (this.#file.size <= AUTOMATIC_BYTES) this.#quantize();
    else this.#offer("The chain has changed since.");
  }

  async #choose(file) {
    if (!file) return;
    this.#running?.abort();
    this.#file = file;
    byId("file-result").replaceChildren();
    byId("file-note").textContent = `${file.name}, ${showBytes(file.size)}`;
    await this.#quantize();
  }

  async #quantize() {
    this.#running?.abort();
    const [file, expression] = [this.#file, this.#expression];
    if (expression === null) {
      showProblem(byId("file-problem"), new Error("The chain cannot be sent as it is. Once it can, the file follows."));
      return;
    }
    const running = (this.#running = new AbortController());
    byId("drop").setAttribute("aria-busy", "true");
    try {
      await this.#check(file);
      const answer = await this.#service.call("quantize", expression, file, running.signal);
      const found = answer.byteLength <= COMPARED_BYTES ? await comparisonOf(file, answer) : null;
      if (running.signal.aborted) return;
      showProblem(byId("file-problem"), null);
      this.#show(nameOf(file.name, expression), answer, found);
      if (found) this.#onCompared(found.comparison, expression, file.name);
    } catch (error) {
      if (error.name === "AbortError") return;
      byId("file-result").replaceChildren();
      showProblem(byId("file-problem"), error);
    } finally {
      if (this.#running === running) byId("drop").removeAttribute("aria-busy");
    }
  }

  /** What can be known before a long way: the size and the dtype. */
  async #check(file) {
    if (file.size > this.limitBytes) {
      throw new NpyError(`${file.name} has ${showBytes(file.size)}; this server takes at most ${showBytes(this.limitBytes)} in one call. Send it in parts, with the Python client or \`stequant batch\`.`);
    }
    readHeader(await file.slice(0, HEAD_BYTES).arrayBuffer());
  }

  #show(name, answer, found) {
    if (this.#link !== null) URL.revokeObjectURL(this.#link);
    this.#link = URL.createObjectURL(new Blob([answer], { type: "application/x-npy" }));
    const figures = found ? [figure("shape", found.shape), figure("dtype", found.dtype), ...figuresOf(found.comparison)] : [];
    byId("file-result").replaceChildren(
      html("a", { class: "button", href: this.#link, download: name }, `Save the result, ${showBytes(answer.byteLength)}`),
      html("p", { class: "note code" }, name),
      html("dl", { class: "figures" }, ...figures),
    );
  }

  #offer(why) {
    const again = html("button", { type: "button", onclick: () => this.#quantize() }, "Quantize the file again");
    byId("file-result").replaceChildren(html("p", { class: "note" }, why), again);
  }
}

/** How a result is called: after its file and the chain, in letters that every system takes. */
export function nameOf(file, expression) {
  const stem = file.replace(/\.npy$/i, "");
  const chain = expression.replace(/\b\w+=/g, "").replace(/[^\w.-]+/g, "_").replace(/^_|_$/g, "");
  return `${stem}.${chain.slice(0, 80)}.npy`;
}

async function comparisonOf(file, answer) {
  const [x, y] = [decode(await file.arrayBuffer()), decode(answer)];
  const [first, ...others] = x;
  return {
    comparison: compare(joined(x), joined(y)),
    shape: others.length === 0 ? showShape(first.shape) : `${x.length} arrays, the first ${showShape(first.shape)}`,
    dtype: [...new Set(x.map((array) => array.dtype))].join(", "),
  };
}

function joined(arrays) {
  if (arrays.length === 1) return arrays[0].values;
  const values = new Float64Array(arrays.reduce((sum, array) => sum + array.values.length, 0));
  let at = 0;
  for (const array of arrays) {
    values.set(array.values, at);
    at += array.values.length;
  }
  return values;
}

// The page put together: what the reader sets, the calls that follow from it, and the sections that show the answers.

import { read, write } from "./address.js";
import { Problem, Service } from "./api.js";
import { showCalls } from "./copy.js";
import { CurveView } from "./curve.js";
import { byId } from "./dom.js";
import { Editor } from "./editor.js";
import { ErrorView } from "./errors.js";
import { FileView } from "./file.js";
import { normal, sweep, uniform } from "./inputs.js";
import { LiveView } from "./live.js";
import { showProblem } from "./notice.js";
import { decode, encode } from "./npy.js";
import { compare } from "./statistics.js";

/** So many values make a curve: ten to a pixel, and a staircase of 11 bits is told from a slope. */
const CURVE_COUNT = 8193;
const INPUT_COUNT = 65536;
/** Long enough that a word is typed, short enough to seem at once. */
const PAUSE_MS = 120;
const RETRY_MS = 3000;

const service = new Service();
const settings = { op: null, from: -0.25, to: 1.25, dtype: "float32", input: "uniform" };
let fromFile = { comparison: null, expression: null };
let editor = null;
let pending = null;
let running = null;

const curveView = new CurveView();
const errorView = new ErrorView();
const fileView = new FileView(service, (comparison, expression, name) => {
  fromFile = { comparison, expression };
  const option = byId("input").querySelector("[value=file]");
  option.disabled = false;
  option.textContent = `of ${name}`;
  byId("input").value = settings.input = "file";
  showErrors(comparison);
  refreshCalls();
});
const liveView = new LiveView(service, showState);

/** Ask for the operators; when they are known, the page can be used. */
async function begin() {
  try {
    const operators = await service.operators();
    byId("key-form").hidden = true;
    if (editor === null) open(operators);
    else schedule();
    liveView.start();
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    if (error.code === "unauthorized") askForKey(error);
    else {
      showState(null, error);
      setTimeout(begin, RETRY_MS);
    }
  }
}

function open(operators) {
  byId("main").hidden = false;
  editor = new Editor(operators, changeChain);
  adopt();
  addEventListener("hashchange", adopt);
  listenToSettings();
}

/** Show what the address says, as far as it says anything. */
function adopt() {
  const given = read(location.hash);
  const first = editor.first;
  const dtypes = [...byId("dtype").options].map((option) => option.value);
  byId("from").value = given.from ?? first.from;
  byId("to").value = given.to ?? first.to;
  byId("dtype").value = dtypes.includes(given.dtype) ? given.dtype : "float32";
  byId("input").value = given.input === "normal" ? "normal" : "uniform";
  readSettings();
  editor.set(given.op ?? first.expression);
}

function listenToSettings() {
  for (const id of ["from", "to", "dtype", "input"]) {
    byId(id).addEventListener("input", () => {
      readSettings();
      schedule();
    });
  }
  for (const choice of document.getElementsByName("kind")) choice.addEventListener("change", refreshCalls);
}

function changeChain(expression, range) {
  settings.op = expression;
  if (range) {
    byId("from").value = range.from;
    byId("to").value = range.to;
    readSettings();
  }
  schedule();
}

/** Take over what the fields say; `from` is null while the range is none. */
function readSettings() {
  const [from, to] = ["from", "to"].map((id) => (byId(id).value.trim() === "" ? NaN : Number(byId(id).value)));
  const isRange = Number.isFinite(from) && Number.isFinite(to) && from < to;
  byId("range-problem").textContent = isRange ? "" : "The range needs two finite numbers, the smaller one first.";
  for (const id of ["from", "to"]) byId(id).setAttribute("aria-invalid", String(!isRange));
  Object.assign(settings, { from: isRange ? from : null, to, dtype: byId("dtype").value, input: byId("input").value });
}

/** Something has changed: ask anew, when the reader pauses. What is under way is of no use any more. */
function schedule() {
  clearTimeout(pending);
  running?.abort();
  for (const id of ["curve", "errors"]) byId(id).classList.add("is-stale");
  pending = setTimeout(refresh, PAUSE_MS);
}

async function refresh() {
  fileView.follow(settings.op);
  if (settings.op === null || settings.from === null) return;
  const signal = (running = new AbortController()).signal;
  history.replaceState(null, "", write(settings));
  refreshCalls();
  try {
    await Promise.all([refreshCurve(signal), refreshErrors(signal)]);
    showProblem(byId("curve-problem"), null);
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof Problem)) throw error;
    showProblem(byId("curve-problem"), error);
    if (error.code === "unauthorized") askForKey(error);
    if (error.status === 0) pending = setTimeout(refresh, RETRY_MS);
  }
}

async function refreshCurve(signal) {
  const { op, from, to, dtype } = settings;
  const x = encode(dtype, sweep(from, to, CURVE_COUNT));
  const ones = encode(dtype, new Float64Array(CURVE_COUNT).fill(1));
  const [y, gradient] = await Promise.all([
    service.call("quantize", op, x, signal),
    service.call("grad", op, new Blob([x, ones]), signal),
  ]);
  if (signal.aborted) return;
  curveView.show({ x: valuesOf(x), y: valuesOf(y), gradient: valuesOf(gradient) });
  byId("curve").classList.remove("is-stale");
}

async function refreshErrors(signal) {
  const { op, from, to, dtype, input } = settings;
  if (input === "file") {
    // Where the chain is another, the file's own section has asked anew, and shows here what it gets.
    if (fromFile.expression === op) showErrors(fromFile.comparison);
    return;
  }
  const x = encode(dtype, (input === "normal" ? normal : uniform)(from, to, INPUT_COUNT));
  const y = await service.call("quantize", op, x, signal);
  if (!signal.aborted) showErrors(compare(valuesOf(x), valuesOf(y)));
}

function showErrors(comparison) {
  errorView.show(comparison);
  byId("errors").classList.remove("is-stale");
}

function refreshCalls() {
  if (settings.op === null) return;
  const kind = document.querySelector("[name=kind]:checked").value;
  const base = new URL(".", location).href;
  showCalls({ kind, expression: settings.op, base, file: fileView.name ?? "x.npy", needsKey: service.key !== null });
}

function askForKey(error) {
  byId("key-form").hidden = false;
  // Nobody has given a key yet when the page is opened: that is no error.
  if (service.key !== null) showProblem(byId("key-problem"), error);
  byId("key").focus();
  byId("key-form").onsubmit = (event) => {
    event.preventDefault();
    const key = byId("key").value.trim();
    if (/[^\x21-\x7e]/.test(key)) {
      showProblem(byId("key-problem"), new Error("A key is of printable ASCII without blanks."));
      return;
    }
    service.key = key;
    begin();
  };
  service.state().then((state) => showState(state), () => showState(null));
}

/** The line at the top: what /readyz says, or that nobody answers. */
function showState(state, error = null) {
  const text = state === null ? (error?.title ?? "The server does not answer") : inWords(state);
  byId("lamp").className = `lamp ${state?.ready ? "on" : "off"}`;
  if (byId("state-text").textContent !== text) byId("state-text").textContent = text;
  if (state?.max_body_bytes) fileView.limitBytes = state.max_body_bytes;
}

function inWords({ ready, device, draining, fault }) {
  if (ready) return `ready on ${device}`;
  return `not ready${draining ? ", about to stop" : ""}${fault ? `: ${fault}` : ""}`;
}

/** The numbers of a .npy answer of one array. */
function valuesOf(buffer) {
  return Float64Array.from(decode(buffer)[0].values);
}

begin();

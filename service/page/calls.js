// The call that the page makes, as a line for a terminal and as Python: what is copied runs as it stands.

/** The texts by language. `base` is the address of the service; `kind` is quantize or grad. */
export function texts({ kind, expression, base, file = "x.npy", needsKey = false }) {
  const call = { expression, base: base.replace(/\/$/, ""), file, needsKey };
  return kind === "quantize"
    ? { curl: curlQuantize(call), python: pythonQuantize(call), shell: shellQuantize(call) }
    : { curl: curlGrad(call), python: pythonGrad(call), shell: shellGrad(call) };
}

/** A word for a POSIX shell, in quotes where it needs them. */
export function quoteForShell(text) {
  return /^[\w@%+:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

/** A string as Python writes it. */
export function quoteForPython(text) {
  return JSON.stringify(text);
}

/** The URL of a call; what a query may hold as it is stays readable. */
export function urlOf({ base, expression }, kind) {
  const op = encodeURIComponent(expression.replaceAll(" ", "")).replaceAll("%3D", "=").replaceAll("%2C", ",");
  return `${base}/${kind}?op=${op}`;
}

function curlQuantize(call) {
  return `curl -sSf ${headers(call)} \\\n  --data-binary ${quoteForShell(`@${call.file}`)} -o y.npy \\\n  ${quoteForShell(urlOf(call, "quantize"))}`;
}

function curlGrad(call) {
  return `cat ${path(call.file)} grad_output.npy | curl -sSf ${headers(call)} \\\n  --data-binary @- -o grad_x.npy \\\n  ${quoteForShell(urlOf(call, "grad"))}`;
}

function headers({ needsKey }) {
  return `-H 'Content-Type: application/x-npy'${needsKey ? ' \\\n  -H "Authorization: Bearer $STEQUANT_API_KEY"' : ""}`;
}

function pythonQuantize({ expression, base, file }) {
  return `import numpy as np
from service.client import Client

with Client(${quoteForPython(base)}) as client:
    y = client.quantize(${quoteForPython(expression)}, np.load(${quoteForPython(file)}))
np.save("y.npy", y)`;
}

function pythonGrad({ expression, base, file }) {
  return `import numpy as np
from service.client import Client

x, grad_output = np.load(${quoteForPython(file)}), np.load("grad_output.npy")
with Client(${quoteForPython(base)}) as client:
    grad_x = client.grad(${quoteForPython(expression)}, x, grad_output)
np.save("grad_x.npy", grad_x)`;
}

function shellQuantize({ expression, base, file }) {
  return `stequant quantize ${path(file)} y.npy \\\n  --op ${quoteForShell(expression)} \\\n  --url ${quoteForShell(base)}`;
}

function shellGrad({ expression, base, file }) {
  return `stequant grad ${path(file)} grad_output.npy grad_x.npy \\\n  --op ${quoteForShell(expression)} \\\n  --url ${quoteForShell(base)}`;
}

/** A file's name that no command takes for an option. */
function path(file) {
  return quoteForShell(file.startsWith("-") ? `./${file}` : file);
}

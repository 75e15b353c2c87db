// Chains of operators: read from an expression, checked against what GET /operators says, and written as an expression.

/** A chain that cannot be; `message` says what is wrong, for people. */
export class ChainError extends Error {}

/** What a number in an expression looks like: a JSON number, `inf` or `-inf`. */
const NUMBER = /^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$/;
const INTEGER = /^-?[0-9]{1,18}$/;
const TOKEN = /[ \t\r\n]*(?:([^\s|(),=]+)|([|(),=]))/y;

/**
 * The chain that an expression writes: `[{name, values}]`, values by parameter as they were typed.
 * Tensor names are refused: a page has no tensors to send along.
 */
export function parse(text, operators) {
  const tokens = tokenize(text);
  const chain = [];
  do chain.push(readOperator(tokens, operators));
  while (tokens.take("|"));
  if (tokens.peek()) throw tokens.unexpected("'|' or the end");
  for (const step of chain) checkStep(step, operators);
  return chain;
}

/** The expression of a chain; `compact` leaves out blanks, for URLs. */
export function format(chain, { compact = false } = {}) {
  const written = chain.map(({ name, values }) => {
    const inner = Object.entries(values).map(([key, value]) => `${key}=${value}`);
    return inner.length === 0 ? name : `${name}(${inner.join(compact ? "," : ", ")})`;
  });
  return written.join(compact ? "|" : " | ");
}

/** What is wrong with the value of a parameter, as a sentence; null when nothing is. */
export function problemOf(text, parameter) {
  const allowed = `${parameter.name} takes ${describe(parameter)}`;
  const value = text.trim();
  if (value === "") return `${parameter.name} is missing; ${allowed}.`;
  const isNumber = NUMBER.test(value) || value === "inf" || value === "-inf";
  if (!isNumber && parameter.type === "float or tensor" && /^(?!nan$)[A-Za-z_]\w*$/.test(value)) {
    return `${parameter.name}=${value} names a tensor, which this page cannot send; use a number here, or the Python client.`;
  }
  if (!isNumber || !isAllowed(value, parameter)) return `${allowed}, not '${value.slice(0, 40)}'.`;
  return null;
}

/** What a parameter may be, in words: from its type and bounds. */
export function describe(parameter) {
  const signs = { minimum: "≥", exclusiveMinimum: ">", maximum: "≤" };
  const limits = Object.entries(signs)
    .filter(([word]) => parameter[word] !== undefined)
    .map(([word, sign]) => `${sign} ${parameter[word]}`)
    .join(" and ");
  const kind = parameter.type === "int" ? "a whole number" : takesInfinity(parameter) ? "a number, inf or -inf" : "a number";
  return `${kind} ${limits}`.trim();
}

/** A step with a value for every parameter: its default, or one that makes sense to begin with. */
export function freshStep(operator) {
  const values = operator.parameters.map((parameter) => [parameter.name, String(parameter.default ?? beginning(parameter))]);
  return { name: operator.name, values: Object.fromEntries(values) };
}

/** The operator with this name. */
export function operatorOf(name, operators) {
  const found = operators.find((operator) => operator.name === name);
  if (!found) throw new ChainError(`There is no operator '${name.slice(0, 60)}'. There are: ${operators.map((one) => one.name).join(", ")}.`);
  return found;
}

function beginning(parameter) {
  if (parameter.type === "int") return Math.max(4, parameter.minimum ?? 4);
  if (parameter.exclusiveMinimum === 0) return 0.25;
  return { min_value: 0, b: 0 }[parameter.name] ?? 1;
}

function takesInfinity(parameter) {
  return parameter.type === "float" && parameter.minimum === undefined && parameter.exclusiveMinimum === undefined && parameter.maximum === undefined;
}

function isAllowed(text, parameter) {
  if (parameter.type === "int" && !INTEGER.test(text)) return false;
  const value = text === "inf" ? Infinity : text === "-inf" ? -Infinity : Number(text);
  if (!Number.isFinite(value)) return takesInfinity(parameter) && text.endsWith("inf");
  if (parameter.minimum !== undefined && value < parameter.minimum) return false;
  if (parameter.maximum !== undefined && value > parameter.maximum) return false;
  return !(parameter.exclusiveMinimum !== undefined && value <= parameter.exclusiveMinimum);
}

function checkStep({ name, values }, operators) {
  for (const parameter of operatorOf(name, operators).parameters) {
    const problem = problemOf(values[parameter.name] ?? "", parameter);
    if (problem) throw new ChainError(`${name}: ${problem}`);
  }
}

function readOperator(tokens, operators) {
  const operator = operatorOf(tokens.word("the name of an operator"), operators);
  const values = {};
  let byName = false;
  if (tokens.take("(") && !tokens.take(")")) {
    do {
      const first = tokens.word("a value, or NAME=VALUE,");
      const isNamed = tokens.take("=");
      if (byName && !isNamed) throw new ChainError(`${operator.name}: every value after NAME=VALUE needs its own name, '${first}' has none.`);
      byName ||= isNamed;
      assign(values, operator, isNamed ? first : null, isNamed ? tokens.word("a value") : first);
    } while (tokens.take(","));
    if (!tokens.take(")")) throw tokens.unexpected("',' or ')'");
  }
  return { name: operator.name, values: inOrder(values, operator) };
}

function assign(values, operator, name, value) {
  const parameters = operator.parameters.map((parameter) => parameter.name);
  const key = name ?? parameters[Object.keys(values).length];
  if (!parameters.includes(key)) {
    const takes = parameters.length === 0 ? "no parameters" : parameters.join(", ");
    throw new ChainError(`${operator.name} takes ${takes}; '${name ?? value}' is ${name ? "none of them" : "one too many"}.`);
  }
  if (key in values) throw new ChainError(`${operator.name}: ${key} is given twice.`);
  values[key] = value;
}

/** The values in the order of the parameters, those that were left out at their defaults. */
function inOrder(values, operator) {
  const entries = operator.parameters.map(({ name, default: byDefault }) => [name, values[name] ?? (byDefault === null ? "" : String(byDefault))]);
  return Object.fromEntries(entries);
}

function tokenize(text) {
  const found = [];
  TOKEN.lastIndex = 0;
  for (let match = TOKEN.exec(text); match; match = TOKEN.exec(text)) {
    const token = match[1] ?? match[2];
    found.push({ token, isMark: match[2] !== undefined, at: TOKEN.lastIndex - token.length + 1 });
  }
  let next = 0;
  const peek = () => found[next];
  const unexpected = (wanted) => {
    const where = peek() ? `at character ${peek().at}, where '${peek().token.slice(0, 40)}' stands` : "where the expression ends";
    return new ChainError(`Expected ${wanted} ${where}.`);
  };
  return {
    peek,
    unexpected,
    take(mark) {
      const isThere = peek()?.isMark === true && peek().token === mark;
      next += isThere ? 1 : 0;
      return isThere;
    },
    word(wanted) {
      if (!peek() || peek().isMark) throw unexpected(wanted);
      return found[next++].token;
    },
  };
}

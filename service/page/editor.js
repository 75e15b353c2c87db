// The chain as a list of operators with their parameters, and as an expression: two views of one value.

import { ChainError, describe, format, freshStep, operatorOf, parse, problemOf } from "./chain.js";
import { byId, html } from "./dom.js";

/** Chains to begin with. One whose operators the server does not have is not offered. */
const PRESETS = [
  { name: "DoReFa, 4 bits", expression: "clamp(0, 1) | k_bit_quantize(4)", from: -0.25, to: 1.25 },
  { name: "Step", expression: "step_quantize(0.5)", from: -2, to: 2 },
  { name: "Binary", expression: "clamp(0, 1) | k_bit_quantize(1)", from: -0.5, to: 1.5 },
  { name: "Ternary", expression: "clamp(-1, 1) | round", from: -2, to: 2 },
  { name: "Whole tensor, 3 bits", expression: "clamp_by_linear | affine_k_bit_quantize(3, 2, -1)", from: -1, to: 1 },
];

/**
 * The editor of a page. `onChange(expression, range)` is called with every change: with null while the chain is
 * not one that could be sent, and with a range where a preset brings its own.
 */
export class Editor {
  #operators;
  #onChange;
  #chain = [];

  constructor(operators, onChange) {
    this.#operators = operators;
    this.#onChange = onChange;
    byId("add").replaceChildren(...operators.map(({ name }) => html("option", {}, name)));
    byId("add-button").addEventListener("click", () => this.#add());
    byId("expression").addEventListener("input", () => this.#read(byId("expression").value));
    byId("presets").replaceChildren(...this.#presets());
  }

  /** Show this expression, whether it is right or not. */
  set(expression, range = null) {
    byId("expression").value = expression;
    this.#read(expression, range);
  }

  /** The expression that a page without any other begins with. */
  get first() {
    return this.#offered()[0] ?? { expression: this.#operators[0].name, from: -1, to: 1 };
  }

  #offered() {
    return PRESETS.filter(({ expression }) => {
      try {
        return parse(expression, this.#operators).length > 0;
      } catch (error) {
        if (error instanceof ChainError) return false;
        throw error;
      }
    }).map((preset) => ({ ...preset, expression: format(parse(preset.expression, this.#operators)) }));
  }

  #presets() {
    return this.#offered().map(({ name, expression, from, to }) =>
      html("button", { type: "button", class: "preset", title: expression, onclick: () => this.set(expression, { from, to }) }, name),
    );
  }

  #read(text, range = null) {
    try {
      this.#chain = parse(text, this.#operators);
    } catch (error) {
      if (!(error instanceof ChainError)) throw error;
      this.#say(error.message);
      this.#onChange(null, range);
      return;
    }
    this.#say("");
    this.#list();
    this.#onChange(format(this.#chain), range);
  }

  #say(problem) {
    byId("expression-problem").textContent = problem;
    byId("expression").setAttribute("aria-invalid", String(problem !== ""));
  }

  #add() {
    this.#chain = [...this.#chain, freshStep(operatorOf(byId("add").value, this.#operators))];
    this.#changed();
    const added = byId("steps").lastElementChild;
    (added.querySelector("input") ?? added.querySelector("button:enabled")).focus();
  }

  /** The list has changed: write the expression, and list it anew. */
  #changed() {
    this.#list();
    this.#write();
  }

  #write() {
    const expression = format(this.#chain);
    byId("expression").value = expression;
    const problem = this.#chain.length === 0 ? "A chain needs at least one operator; add one below." : this.#firstProblem();
    this.#say(problem ?? "");
    this.#onChange(problem ? null : expression, null);
  }

  #firstProblem() {
    for (const { name, values } of this.#chain) {
      for (const parameter of operatorOf(name, this.#operators).parameters) {
        const problem = problemOf(values[parameter.name], parameter);
        if (problem) return `${name}: ${problem}`;
      }
    }
    return null;
  }

  #move(index, by) {
    const chain = [...this.#chain];
    const [step] = chain.splice(index, 1);
    chain.splice(index + by, 0, step);
    this.#chain = chain;
    this.#changed();
    // The focus goes with the operator, so that it can be moved on.
    const moved = byId("steps").children[index + by];
    (moved.querySelector(by < 0 ? ".up:enabled" : ".down:enabled") ?? moved.querySelector("button:enabled")).focus();
  }

  #remove(index) {
    this.#chain = this.#chain.filter((_, at) => at !== index);
    this.#changed();
    const next = byId("steps").children[Math.min(index, this.#chain.length - 1)];
    (next?.querySelector(".remove") ?? byId("add")).focus();
  }

  #list() {
    byId("steps").replaceChildren(...this.#chain.map((step, index) => this.#item(step, index)));
  }

  #item(step, index) {
    const operator = operatorOf(step.name, this.#operators);
    const last = this.#chain.length - 1;
    const button = (kind, sign, label, disabled, onclick) =>
      html("button", { type: "button", class: `quiet ${kind}`, "aria-label": `${label} ${step.name}`, title: label, disabled, onclick }, sign);
    return html(
      "li",
      { class: "step" },
      html(
        "div",
        { class: "step-head" },
        html("h3", {}, step.name),
        button("up", "↑", "Move up", index === 0, () => this.#move(index, -1)),
        button("down", "↓", "Move down", index === last, () => this.#move(index, 1)),
        button("remove", "×", "Remove", false, () => this.#remove(index)),
      ),
      html("p", { class: "formula code" }, operator.formula),
      // What comes after the semicolon is about tensors, which a page does not send, and about rare cases.
      html("p", { class: "formula code" }, operator.gradient.split(";")[0]),
      ...operator.parameters.map((parameter) => this.#field(step, index, parameter)),
    );
  }

  #field(step, index, parameter) {
    const id = `step-${index}-${parameter.name}`;
    const problem = html("p", { class: "problem-line", id: `${id}-problem`, role: "alert" });
    const isInt = parameter.type === "int";
    const input = html("input", {
      id,
      type: isInt ? "number" : "text",
      step: isInt ? 1 : null,
      min: isInt ? parameter.minimum : null,
      max: isInt ? parameter.maximum : null,
      inputmode: isInt ? "numeric" : "decimal",
      autocomplete: "off",
      value: step.values[parameter.name],
      "aria-describedby": `${id}-note ${id}-problem`,
      oninput: () => {
        step.values[parameter.name] = input.value.trim();
        const wrong = problemOf(input.value, parameter);
        problem.textContent = wrong ?? "";
        input.setAttribute("aria-invalid", String(wrong !== null));
        this.#write();
      },
    });
    const note = html("span", { class: "note", id: `${id}-note` }, describe(parameter));
    return html("div", { class: "parameter" }, html("label", { for: id, title: parameter.description }, parameter.name), input, note, problem);
  }
}

// A figure with its name, for a description list.

import { html } from "./dom.js";

/** One figure: `name` above, `value` below, and maybe something drawn beside it. */
export function figure(name, value, ...drawn) {
  return html("div", {}, html("dt", {}, name), html("dd", {}, value, ...drawn));
}

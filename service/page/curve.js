// The staircase and its gradient: two plots over one x, a slider that reads them, the same in words and as a table.

import { byId, html } from "./dom.js";
import { draw, indexAt } from "./plot.js";
import { describe, inWords, rows } from "./steps.js";
import { showNumber } from "./words.js";

/** The section of the page that shows a curve, `{x, y, gradient}`. */
export class CurveView {
  #curve = null;
  #plots = [];

  constructor() {
    const scrub = byId("scrub");
    scrub.addEventListener("input", () => this.#read());
    for (const plot of [byId("value-plot"), byId("gradient-plot")]) {
      plot.addEventListener("pointermove", (event) => this.#point(plot, event));
      plot.addEventListener("pointerdown", (event) => this.#point(plot, event));
    }
    new ResizeObserver(() => this.#draw()).observe(byId("curve"));
  }

  /** Show a curve; the slider keeps its place in the range. */
  show(curve) {
    byId("curve").hidden = false;
    const scrub = byId("scrub");
    const share = this.#curve === null ? 0.5 : Number(scrub.value) / (this.#curve.x.length - 1);
    this.#curve = curve;
    scrub.max = curve.x.length - 1;
    scrub.value = Math.round(share * (curve.x.length - 1));
    const description = describe(curve);
    this.#draw(description);
    const outside = this.#plots.reduce((sum, plot) => sum + plot.outside, 0);
    byId("summary").textContent = inWords(description, outside);
    byId("rows").replaceChildren(
      ...rows(curve).map((row) => html("tr", {}, ...row.map((value) => html("td", {}, showNumber(value, 6))))),
    );
  }

  #draw(description = this.#curve && describe(this.#curve)) {
    if (this.#curve === null) return;
    const { x, y, gradient } = this.#curve;
    this.#plots = [
      draw(byId("value-plot"), { x, y, tone: "value", levels: description.levels, diagonal: true }),
      draw(byId("gradient-plot"), { x, y: gradient, tone: "gradient", include: [0, 1] }),
    ];
    this.#read();
  }

  #point(plot, event) {
    if (this.#curve === null) return;
    byId("scrub").value = indexAt(plot, event, this.#curve.x.length);
    this.#read();
  }

  #read() {
    if (this.#curve === null) return;
    const { x, y, gradient } = this.#curve;
    const index = Number(byId("scrub").value);
    const shown = { x: x[index], y: y[index], gradient: gradient[index], "y − x": y[index] - x[index] };
    for (const plot of this.#plots) plot.place(index);
    byId("readout").replaceChildren(
      ...Object.entries(shown).map(([name, value]) => html("span", {}, `${name} `, html("b", {}, showNumber(value, 5)))),
    );
    byId("scrub").setAttribute("aria-valuetext", `x ${showNumber(x[index])}, y ${showNumber(y[index])}, gradient ${showNumber(gradient[index])}`);
  }
}

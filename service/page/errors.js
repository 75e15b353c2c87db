// How far y lies from x: figures and a histogram.

import { byId } from "./dom.js";
import { figure } from "./figures.js";
import { drawHistogram } from "./histogram.js";
import { MOST_LEVELS } from "./statistics.js";
import { showAmount, showCount, showDecibels, showNumber } from "./words.js";

/** The section of the page that shows a comparison of y with x. */
export class ErrorView {
  #histogram = null;

  constructor() {
    new ResizeObserver(() => drawHistogram(byId("histogram"), this.#histogram)).observe(byId("errors"));
  }

  /** Show what `compare` found. */
  show(comparison) {
    byId("errors").hidden = false;
    this.#histogram = comparison.histogram;
    drawHistogram(byId("histogram"), comparison.histogram);
    byId("error-figures").replaceChildren(...figuresOf(comparison));
  }
}

/** The figures of a comparison, for this section and for that of the file. */
export function figuresOf({ elements, compared, levels, largestError, rmsError, meanError, snrDb }) {
  const left = elements - compared;
  return [
    figure("SNR", showDecibels(snrDb)),
    figure("largest error", compared ? showNumber(largestError) : "–"),
    figure("rms error", compared ? showNumber(rmsError) : "–"),
    figure("mean error", compared ? showNumber(meanError, 3) : "–"),
    figure("levels", levels === null ? `more than ${showCount(MOST_LEVELS)}` : showCount(levels)),
    ...(left > 0 ? [figure("not compared", `${showAmount(left, "value")}, NaN or infinite`)] : []),
  ];
}

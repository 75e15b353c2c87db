// What the server does now: two readings of /metrics every few seconds, and /readyz; nothing while nobody looks.

import { byId, svg } from "./dom.js";
import { figure } from "./figures.js";
import { between, read } from "./metrics.js";
import { Problem } from "./api.js";
import { showAmount, showBytes, showCount, showNumber, showSeconds } from "./words.js";

const PERIOD_MS = 2000;
/** Two minutes of readings are drawn; quantiles are of the last ten seconds, so that single calls do not make them jump. */
const KEPT = 60;
const WINDOW = 5;

/** The section of the page that watches the server. `onState(state)` is given what /readyz says, or null. */
export class LiveView {
  #service;
  #onState;
  #readings = [];
  #timer = null;

  constructor(service, onState) {
    this.#service = service;
    this.#onState = onState;
    document.addEventListener("visibilitychange", () => (document.hidden ? this.#pause() : this.start()));
  }

  /** Read now, and then again and again. */
  async start() {
    this.#pause();
    await this.#look();
    if (!document.hidden && this.#timer === null) this.#timer = setTimeout(() => this.start(), PERIOD_MS);
  }

  #pause() {
    clearTimeout(this.#timer);
    this.#timer = null;
  }

  async #look() {
    try {
      this.#onState(await this.#service.state());
      const reading = read(await this.#service.metrics(), performance.now());
      const isSame = this.#readings.length === 0 || between(this.#readings.at(-1), reading) !== null;
      this.#readings = [...(isSame ? this.#readings : []), reading].slice(-KEPT);
      byId("live-problem").textContent = "";
      this.#show();
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      if (error.status === 0) this.#onState(null);
      byId("live-problem").textContent = error.code === "unauthorized" ? "The metrics need a key." : `${error.title}.`;
    }
  }

  #show() {
    const now = this.#readings.at(-1);
    const steps = this.#readings.slice(1).map((reading, index) => between(this.#readings[index], reading));
    const last = steps.at(-1);
    const window = this.#readings.length > 1 ? between(this.#readings.at(-Math.min(WINDOW + 1, this.#readings.length)), now) : null;
    byId("live-figures").replaceChildren(
      figure("calls", last ? `${showNumber(last.callsPerSecond, 3)} /s` : "–", spark(steps.map((step) => step.callsPerSecond))),
      figure("bytes in and out", last ? `${showBytes(last.bytesPerSecond)}/s` : "–", spark(steps.map((step) => step.bytesPerSecond))),
      figure("latency, median", window ? showSeconds(window.medianSeconds) : "–", spark(steps.map((step) => step.medianSeconds))),
      figure("latency, 95 %", window ? showSeconds(window.slowSeconds) : "–", spark(steps.map((step) => step.slowSeconds))),
      figure("in flight", `${showBytes(now.inFlightBytes)} of ${showBytes(now.inFlightLimitBytes)}`),
      figure("connections", showCount(now.connections)),
    );
    byId("live-note").textContent = `${showAmount(now.calls, "call")} and ${showAmount(now.errors, "refusal")} since its start; ${showAmount(now.workers, "worker")}.`;
  }
}

/** A line of the last readings, the newest at the right; where there is nothing, nothing is drawn. */
function spark(values) {
  const [width, height] = [120, 22];
  const greatest = Math.max(...values.filter(Number.isFinite), 0);
  const step = width / (KEPT - 2);
  const points = values
    .map((value, index) => [width - 1 - (values.length - 1 - index) * step, height - 2 - (greatest > 0 ? (value / greatest) * (height - 4) : 0)])
    .filter(([, top]) => Number.isFinite(top));
  return svg(
    "svg",
    { class: "spark", viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" },
    points.length < 2 ? "" : svg("polyline", { points: points.map(([left, top]) => `${left.toFixed(1)},${top.toFixed(1)}`).join(" ") }),
  );
}

// What /metrics says, read from Prometheus' text format, and what two readings say of the time between them.

const SAMPLE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? +(\S+)/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;
/** The routes that compute, those of the Open Inference Protocol too; questions about the service are not counted. */
const COMPUTES = /^\/(quantize|grad)$|\/infer$/;

/** The samples of a text: `[{name, labels, value}]`. */
export function parse(text) {
  const samples = [];
  for (const line of text.split("\n")) {
    const match = line.startsWith("#") ? null : SAMPLE.exec(line);
    if (!match) continue;
    const labels = Object.fromEntries([...(match[2] ?? "").matchAll(LABEL)].map(([, name, value]) => [name, value]));
    samples.push({ name: match[1], labels, value: number(match[3]) });
  }
  return samples;
}

/** What the page shows of one reading, taken at `atMs`. `buckets` are cumulative: `[[upper bound in s, count]]`. */
export function read(text, atMs) {
  const samples = parse(text);
  const total = (name, accept = () => true) =>
    samples.filter((one) => one.name === name && accept(one.labels)).reduce((sum, one) => sum + one.value, 0);
  const computes = ({ route }) => COMPUTES.test(route);
  const bounds = [...new Set(samples.filter((one) => one.name === "stequant_request_seconds_bucket").map((one) => number(one.labels.le)))];
  return {
    atMs,
    calls: total("stequant_requests_total", computes),
    bytes: total("stequant_received_bytes_total", computes) + total("stequant_sent_bytes_total", computes),
    errors: total("stequant_errors_total"),
    inFlightBytes: total("stequant_in_flight_bytes"),
    inFlightLimitBytes: total("stequant_in_flight_limit_bytes"),
    connections: total("stequant_connections"),
    workers: total("stequant_ready"),
    buckets: bounds
      .sort((one, other) => one - other)
      .map((bound) => [bound, total("stequant_request_seconds_bucket", (labels) => computes(labels) && number(labels.le) === bound)]),
  };
}

/** What happened from one reading to a later one; null when a server was started anew in between. */
export function between(earlier, later) {
  const seconds = (later.atMs - earlier.atMs) / 1000;
  const calls = later.calls - earlier.calls;
  if (seconds <= 0 || calls < 0) return null;
  const counts = later.buckets.map(([bound, count], index) => [bound, count - (earlier.buckets[index]?.[1] ?? 0)]);
  return {
    callsPerSecond: calls / seconds,
    bytesPerSecond: (later.bytes - earlier.bytes) / seconds,
    medianSeconds: quantile(0.5, counts),
    slowSeconds: quantile(0.95, counts),
  };
}

/** A quantile of cumulative buckets, as Prometheus' histogram_quantile gives it; NaN when they are empty. */
export function quantile(share, buckets) {
  const total = buckets.at(-1)?.[1] ?? 0;
  if (!(total > 0)) return NaN;
  const rank = share * total;
  const index = buckets.findIndex(([, count]) => count >= rank);
  const [upper, count] = buckets[index];
  const [lower, below] = index === 0 ? [0, 0] : buckets[index - 1];
  if (upper === Infinity) return lower;
  return lower + (upper - lower) * ((rank - below) / (count - below));
}

function number(text) {
  return text === "+Inf" ? Infinity : text === "-Inf" ? -Infinity : Number(text);
}

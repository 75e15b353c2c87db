// What the page shows, in the fragment of its address: a link shares it, and it never reaches a server's log.

const FIELDS = ["op", "from", "to", "dtype", "input"];

/** What a fragment says: those of the fields that stand in it, as text. */
export function read(fragment) {
  const parameters = new URLSearchParams(fragment.replace(/^#/, ""));
  return Object.fromEntries(FIELDS.filter((name) => parameters.has(name)).map((name) => [name, parameters.get(name)]));
}

/** The fragment that says this; readable where an address may be. */
export function write(state) {
  const escape = (text) => encodeURIComponent(text).replaceAll("%3D", "=").replaceAll("%2C", ",").replaceAll("%20", "");
  return `#${FIELDS.map((name) => `${name}=${escape(String(state[name]))}`).join("&")}`;
}

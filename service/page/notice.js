// An error where it belongs: what went wrong, what was sent and what is allowed, and the stable code.

import { html } from "./dom.js";

/** Show an error in an element of the page; null takes it away. */
export function showProblem(element, error) {
  element.replaceChildren(...(error === null ? [] : [noticeOf(error)]));
}

function noticeOf({ title, detail, code, status, message }) {
  const lines = title ? [html("strong", {}, title), html("p", {}, detail)] : [html("strong", {}, message)];
  const source = [status || "", code].filter(Boolean).join(" ");
  return html("div", { class: "notice" }, ...lines, source ? html("p", { class: "code" }, source) : "");
}

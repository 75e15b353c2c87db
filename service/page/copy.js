// The call as curl, Python and a command line, each with a button that copies it.

import { texts } from "./calls.js";
import { byId, html } from "./dom.js";

const NAMES = { curl: "curl", python: "Python", shell: "Command line" };

/** Show the texts of a call; see `texts` for what it is. */
export function showCalls(call) {
  const written = Object.entries(texts(call)).map(([language, text]) => {
    const code = html("code", {}, text);
    const button = html("button", { type: "button", class: "quiet", "aria-label": `Copy ${NAMES[language]}`, onclick: () => copy(text, code, button) }, "Copy");
    return html(
      "div",
      { class: "snippet" },
      html("div", { class: "heading" }, html("h3", {}, NAMES[language]), button),
      html("pre", { tabindex: 0, role: "region", "aria-label": NAMES[language], "data-language": language }, code),
    );
  });
  byId("calls").replaceChildren(...written);
}

async function copy(text, code, button) {
  const isCopied = await copied(text, code);
  button.textContent = isCopied ? "Copied" : "Selected";
  byId("copied").textContent = isCopied ? `${button.getAttribute("aria-label")}: done` : "Selected; copy it with the keyboard";
  setTimeout(() => (button.textContent = "Copy"), 2000);
}

/** Whether the text is on the clipboard. Pages that came without TLS may not write there: then it is selected. */
async function copied(text, code) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    getSelection().selectAllChildren(code);
    return document.execCommand("copy");
  }
}

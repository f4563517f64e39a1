/** Files saved and text copied. */

import { blob } from "./api.js";
import { announce, el } from "./dom.js";
import { errorWords } from "./words.js";

/**
 * A link that saves a file of a job; why it cannot be saved is told in words.
 *
 * @param {string} text
 * @param {string} path
 * @param {string} name
 * @param {(words: string) => void} onError
 * @returns {HTMLAnchorElement}
 */
export function saveLink(text, path, name, onError) {
  const link = el("a", { class: "button", href: path, download: name }, text);
  link.addEventListener("click", async (event) => {
    event.preventDefault();
    try {
      await save(await blob(path), name);
      onError("");
    } catch (error) {
      onError(errorWords(error));
    }
  });
  return link;
}

/**
 * @param {Blob} content
 * @param {string} name
 */
async function save(content, name) {
  const url = URL.createObjectURL(content);
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/**
 * A button that copies a text, and says so.
 *
 * @param {string} label
 * @param {() => string} text
 * @returns {HTMLButtonElement}
 */
export function copyButton(label, text) {
  const button = el("button", { type: "button" }, label);
  button.addEventListener("click", async () => {
    const words = (await copied(text())) ? "Copied" : "Not copied: the browser does not allow it";
    announce(words);
    button.textContent = words;
    setTimeout(() => (button.textContent = label), 2000);
  });
  return button;
}

/**
 * @param {string} text
 * @returns {Promise<boolean>} Whether it was; over plain HTTP from elsewhere there is only the old way.
 */
async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = el("textarea", { class: "unseen", "aria-hidden": true });
    area.value = text;
    document.body.append(area);
    area.select();
    const isDone = document.execCommand("copy");
    area.remove();
    return isDone;
  }
}

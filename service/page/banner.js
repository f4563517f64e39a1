/** The line that says that the service does not answer, and that it does again. */

import { connection } from "./connection.js";
import { byId, el } from "./dom.js";

const GOOD_NEWS_SECONDS = 4;

/** Have the banner of the page tell of the connection. */
export function installBanner() {
  const banner = byId("banner");
  let timer = 0;
  connection.addEventListener("lost", (event) => {
    clearInterval(timer);
    let left = /** @type {CustomEvent} */ (event).detail.seconds;
    const words = el("span", {}, wordsFor(left));
    timer = setInterval(() => (words.textContent = wordsFor((left = Math.max(0, left - 1)))), 1000);
    banner.className = "banner bad";
    banner.hidden = false;
    banner.replaceChildren(words, el("button", { type: "button", onclick: () => connection.hurry() }, "Try now"));
  });
  connection.addEventListener("found", () => {
    clearInterval(timer);
    banner.className = "banner good";
    banner.replaceChildren("The service answers again.");
    timer = setTimeout(() => (banner.hidden = true), 1000 * GOOD_NEWS_SECONDS);
  });
}

/**
 * @param {number} seconds
 * @returns {string}
 */
function wordsFor(seconds) {
  return `The service does not answer. ${seconds ? `Trying again in ${seconds} s.` : "Trying again…"}`;
}

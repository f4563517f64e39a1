/** The line that says that the service does not answer, and that it does again. */

import { connection } from "./connection.js";
import { byId, el, say } from "./dom.js";

const GOOD_NEWS_SECONDS = 4;

/** Have the banner of the page tell of the connection. */
export function installBanner() {
  const banner = byId("banner");
  const words = el("span");
  const hurry = el("button", { type: "button", onclick: () => connection.hurry() }, "Try now");
  let timer = 0;
  connection.addEventListener("lost", (event) => {
    let left = /** @type {CustomEvent} */ (event).detail.seconds;
    const tell = () => say(words, "The service does not answer.", left--);
    tell();
    clearInterval(timer);
    timer = setInterval(tell, 1000);
    banner.className = "banner bad";
    banner.hidden = false;
    if (!hurry.isConnected) banner.replaceChildren(words, hurry);
  });
  connection.addEventListener("found", () => {
    clearInterval(timer);
    banner.className = "banner good";
    banner.replaceChildren("The service answers again.");
    timer = setTimeout(() => (banner.hidden = true), 1000 * GOOD_NEWS_SECONDS);
  });
}

/** Elements made and found. No markup is ever put together from text. */

/**
 * An element with attributes (`on...`: listeners; null and false: left out) and children.
 *
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, any>} [attributes]
 * @param {...(Node | string | null | false)} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function el(tag, attributes = {}, ...children) {
  return dress(document.createElement(tag), attributes, children);
}

/**
 * The same within a drawing.
 *
 * @template {keyof SVGElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, any>} [attributes]
 * @param {...(Node | string | null | false)} children
 * @returns {SVGElementTagNameMap[Tag]}
 */
export function svg(tag, attributes = {}, ...children) {
  return dress(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

/**
 * @template {Element} Made
 * @param {Made} element
 * @param {Record<string, any>} attributes
 * @param {(Node | string | null | false)[]} children
 * @returns {Made}
 */
function dress(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, value === true ? "" : String(value));
    }
  }
  element.append(...children.filter(isShown));
  return element;
}

/**
 * @param {Node | string | null | false} child
 * @returns {child is Node | string}
 */
function isShown(child) {
  return child !== null && child !== false;
}

/**
 * The element of the page with an id.
 *
 * @param {string} id
 * @returns {HTMLElement}
 */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no #${id}`);
  return found;
}

/**
 * Say something to who listens to the page rather than looks at it.
 *
 * @param {string} words
 */
export function announce(words) {
  byId("live").textContent = words;
}

/**
 * Show words, or nothing for "", in an element that may be read out whenever it is written: it is only if they are
 * others, and the seconds that count down beside them are for the eye alone.
 *
 * @param {HTMLElement} element
 * @param {string} words
 * @param {number} [seconds] Until it is tried again.
 */
export function say(element, words, seconds = 0) {
  if (element.firstChild?.textContent !== words) element.replaceChildren(words, el("span", { "aria-hidden": true }));
  const countdown = /** @type {Element} */ (element.lastElementChild);
  countdown.textContent = seconds > 0 ? ` Trying again in ${seconds} s.` : "";
  element.hidden = !words;
}

/**
 * Scroll to an element whose beginning is not near the top of the window.
 *
 * @param {HTMLElement} element
 */
export function reveal(element) {
  const { top } = element.getBoundingClientRect();
  if (top >= 0 && top < 0.25 * window.innerHeight) return;
  const isStill = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  element.scrollIntoView({ behavior: isStill ? "auto" : "smooth", block: "start" });
}

/**
 * Resolves after so long; rejects when the signal is given.
 *
 * @param {number} seconds
 * @param {AbortSignal} [signal]
 * @returns {Promise<void>}
 */
export function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(signal.reason);
    const stop = () => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, 1000 * seconds);
    signal?.addEventListener("abort", stop, { once: true });
  });
}

/** Tables. */

import { el } from "./dom.js";

/**
 * @param {string} title
 * @param {string[]} head
 * @param {string[][]} rows
 * @returns {HTMLElement}
 */
export function table(title, head, rows) {
  return el(
    "div",
    { class: "table" },
    el(
      "table",
      {},
      el("caption", {}, title),
      el("thead", {}, el("tr", {}, ...head.map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map((cell) => el("td", {}, cell))))),
    ),
  );
}

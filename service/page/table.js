/** Tables. */

import { el } from "./dom.js";

/**
 * @param {string} title
 * @param {string[]} head
 * @param {string[][]} rows
 * @param {string} [note]
 * @returns {HTMLElement}
 */
export function table(title, head, rows, note = "") {
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
    note ? el("p", { class: "hint" }, note) : null,
  );
}

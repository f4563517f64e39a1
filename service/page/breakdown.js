/** Where the time of a job went, as a bar with a legend. */

import { el } from "./dom.js";
import { amount, counted, duration } from "./words.js";

/** @import { Latency } from "./types.js" */

/** @type {[keyof Latency, string, string][]} */
const STAGES = [
  ["queue_seconds", "queue", "Queue"],
  ["batch_wait_seconds", "batch", "Batch wait"],
  ["sampling_seconds", "sampling", "Sampling"],
  ["encoding_seconds", "encoding", "Encoding"],
];

/**
 * @param {Latency} latency
 * @returns {HTMLElement}
 */
export function breakdown(latency) {
  const bar = el("div", { class: "bar", "aria-hidden": true });
  const legend = el("dl", { class: "legend" });
  const whole = STAGES.reduce((sum, [field]) => sum + latency[field], 0) || 1;
  for (const [field, name, words] of STAGES) {
    const part = el("span", { class: `part part-${name}`, title: `${words}: ${duration(latency[field])}` });
    part.style.flexGrow = String(latency[field] / whole);
    bar.append(part);
    legend.append(
      el(
        "div",
        {},
        el("dt", {}, el("span", { class: `swatch part-${name}`, "aria-hidden": true }), words),
        el("dd", {}, duration(latency[field])),
      ),
    );
  }
  const sums = [
    `${duration(latency.total_seconds)} in all`,
    `${counted(latency.evaluations, "evaluation")} of each image`,
    `${amount(Number(latency.images_per_second.toPrecision(3)))} images a second`,
    `largest batch ${counted(latency.batch_images, "image")}`,
  ];
  return el(
    "section",
    { class: "breakdown", "aria-label": "Where the time went" },
    el("h3", {}, "Where the time went"),
    bar,
    legend,
    el("p", { class: "hint" }, sums.join(" · ")),
  );
}

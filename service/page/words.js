/** What numbers, jobs and refusals are in words. */

import { Problem } from "./problem.js";

/** @import { Dimension, Eta, Job } from "./types.js" */

const NUMBER = new Intl.NumberFormat("en");
const TIME = new Intl.DateTimeFormat("en", { dateStyle: "medium", timeStyle: "short" });
const CLOCK = new Intl.DateTimeFormat("en", { timeStyle: "medium" });
const AGO = new Intl.RelativeTimeFormat("en", { numeric: "auto" });

const STATUS = {
  queued: "Waiting",
  running: "Sampling",
  succeeded: "Done",
  failed: "Failed",
  canceled: "Canceled",
  expired: "Expired before it began",
};

/**
 * @param {Job["status"]} status
 * @returns {string}
 */
export function statusWords(status) {
  return STATUS[status] ?? status;
}

/**
 * @param {number} value
 * @returns {string} With commas between thousands.
 */
export function amount(value) {
  return NUMBER.format(value);
}

/**
 * @param {number} count
 * @param {string} one
 * @param {string} [many]
 * @returns {string} Such as "1 image" or "2 images".
 */
export function counted(count, one, many = `${one}s`) {
  return `${amount(count)} ${count === 1 ? one : many}`;
}

/**
 * @param {Dimension | string} D
 * @returns {string}
 */
export function dimension(D) {
  return D === "inf" ? "∞" : String(D);
}

/**
 * @param {string} letter
 * @param {string} value
 * @returns {string} Such as "D = 128", on one line.
 */
export function named(letter, value) {
  return `${letter}\u00a0=\u00a0${value}`;
}

/**
 * @param {number} seconds
 * @returns {string} With as many digits as mean something: "8 ms", "1.3 s", "45 s", "3 min".
 */
export function duration(seconds) {
  if (seconds < 0.0995) return `${Math.round(1000 * seconds)} ms`;
  if (seconds < 9.95) return `${seconds.toPrecision(2)} s`;
  if (seconds < 99.5) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 100 ? `${minutes} min` : `${Number((seconds / 3600).toPrecision(2))} h`;
}

/**
 * @param {Eta} eta
 * @param {string} [left] Said of what is under way.
 * @returns {string} Such as "about 3 s (9 in 10: under 5 s)".
 */
export function expectation({ p50, p90 }, left = "") {
  const [likely, most] = [duration(p50), duration(p90)];
  return `about ${likely}${left}${likely === most ? "" : ` (9 in 10: under ${most})`}`;
}

/**
 * @param {string} time
 * @returns {string} Such as "3 minutes ago".
 */
export function ago(time) {
  const seconds = (Date.parse(time) - Date.now()) / 1000;
  if (seconds > -45) return "just now";
  if (seconds > -3600) return AGO.format(Math.round(seconds / 60), "minute");
  if (seconds > -86400) return AGO.format(Math.round(seconds / 3600), "hour");
  return moment(time);
}

/**
 * @param {string} time
 * @returns {string}
 */
export function moment(time) {
  return TIME.format(new Date(time));
}

/**
 * @param {string} time
 * @returns {string} The time of day, such as "5:24:10 PM".
 */
export function clock(time) {
  return CLOCK.format(new Date(time));
}

/**
 * A request in words, such as "16 images of digits, D = 2048, 18 steps of heun, class 7".
 *
 * @param {Record<string, any>} request
 * @param {string[]} classes
 * @returns {string}
 */
export function requestWords(request, classes) {
  const asked = [...new Set(request.labels ?? [])];
  const names = asked.filter((label) => label !== null).map((label) => classes[label] ?? label);
  const shown = names.slice(0, 3).join(", ") + (names.length > 3 ? ", …" : "");
  return [
    `${counted(request.count, "image")} of ${request.dataset}`,
    named("D", dimension(request.D)),
    `${request.steps} steps of ${request.solver}`,
    ...(names.length ? [`${names.length > 1 ? "classes" : "class"} ${shown}`] : []),
    ...(request.guidance && request.guidance !== 1 ? [`guidance ${request.guidance}`] : []),
  ].join(", ");
}

/**
 * @param {Job} job
 * @returns {string} Such as "seed 5", "seeds 7 to 14" or "seeds 3, 10, 11, …".
 */
export function seedWords({ seeds }) {
  if (seeds.length === 1) return `seed ${seeds[0]}`;
  if (consecutive(seeds)) return `seeds ${seeds[0]} to ${seeds.at(-1)}`;
  return `seeds ${seeds.slice(0, 3).join(", ")}${seeds.length > 3 ? ", …" : ""}`;
}

/**
 * @param {(number | bigint)[]} seeds
 * @returns {boolean} Whether each is one more than the last.
 */
export function consecutive(seeds) {
  return seeds.every((seed, k) => k === 0 || BigInt(seed) === BigInt(seeds[0]) + BigInt(k));
}

/**
 * An image of a job in words, such as "image 3 (seed 10, class 7)".
 *
 * @param {Job} job
 * @param {number} k
 * @param {string[]} classes
 * @returns {string}
 */
export function imageWords({ seeds, labels }, k, classes) {
  const label = labels?.[k];
  return `image ${k} (seed ${seeds[k]}${label === undefined ? "" : `, class ${classes[label] ?? label}`})`;
}

/**
 * @param {string} words
 * @returns {string} With a capital letter.
 */
export function capitalized(words) {
  return words.charAt(0).toUpperCase() + words.slice(1);
}

/**
 * @param {string} words
 * @returns {string} With a capital letter and a full stop.
 */
export function sentence(words) {
  return capitalized(words).replace(/\.?$/, ".");
}

/**
 * What an error is to who reads the page.
 *
 * @param {unknown} error
 * @returns {string}
 */
export function errorWords(error) {
  const words = error instanceof Error ? error.message : String(error);
  if (!(error instanceof Problem)) return words;
  if (error.status === 401) return "This service asks for an API key.";
  if (error.code === "result-expired")
    return "The result was kept for a while, and is no longer there. Ask for it again to have the same images.";
  if (error.code === "not-found") return "There is no such job, or no longer.";
  return sentence(words);
}

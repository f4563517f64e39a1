/** Some jobs of the same seeds and classes, side by side: their images, how these came about, and what they took. */

import { chart, short } from "./chart.js";
import { announce, el } from "./dom.js";
import { plannedLevels } from "./levels.js";
import { modelOf } from "./request.js";
import { finalDistance, pathCanvas } from "./row.js";
import { table } from "./table.js";
import { amount, counted, dimension, duration, imageWords, named } from "./words.js";

/** @import { Row } from "./row.js" */
/** @import { Job, Latency, Model } from "./types.js" */

/** All jobs of a comparison. */
export class Comparison {
  /** @type {Row[]} */
  rows = [];
  #chosen = 0;
  #stopping = new AbortController();

  /**
   * @param {"D" | "steps"} by What differs.
   * @param {Model[]} models
   */
  constructor(by, models) {
    this.by = by;
    this.models = models;
    this.caption = el("p", { class: "caption", "aria-hidden": true });
    this.pictures = el("div", { class: "compared-all" });
    this.paths = el("section", { class: "paths", hidden: true, "aria-label": "How an image came about" });
    this.figures = el("section", { class: "figures", hidden: true, "aria-label": "Noise and time" });
    this.title = el("h2", { tabindex: -1 }, by === "D" ? "The same seeds, every D" : "The same seeds, more steps");
    this.element = el(
      "article",
      { class: "card comparison" },
      this.title,
      this.pictures,
      this.caption,
      this.paths,
      this.figures,
    );
    new ResizeObserver(() => this.#drawPaths()).observe(this.pictures);
  }

  get signal() {
    return this.#stopping.signal;
  }

  close() {
    this.#stopping.abort();
  }

  /** @param {Row[]} rows Run them all; resolves when all have ended. */
  async run(rows) {
    this.rows = rows;
    this.pictures.replaceChildren(...rows.map(({ element }) => element));
    await Promise.all(rows.map((row) => row.run(this.signal)));
    if (this.signal.aborted) return;
    this.element.dataset.done = "yes";
    announce("The comparison is done.");
  }

  /**
   * @param {Job} job
   * @returns {string}
   */
  nameOf({ request }) {
    return this.by === "D" ? named("D", dimension(request.D)) : `${request.steps} steps`;
  }

  /**
   * @param {Latency} latency
   * @returns {string} What a job took, as far as that comes of what differs.
   */
  costOf({ evaluations, sampling_seconds }) {
    if (this.by === "D") return `${counted(evaluations, "evaluation")} an image`;
    return `Sampled in ${duration(sampling_seconds)}`;
  }

  /**
   * @param {Job} job
   * @returns {Model | undefined}
   */
  modelOf(job) {
    return modelOf(this.models, job);
  }

  /**
   * @param {Job} job
   * @param {number} k
   * @returns {string}
   */
  imageName(job, k) {
    return imageWords(job, k, this.modelOf(job)?.classes ?? []);
  }

  /**
   * @param {Job} job
   * @param {number | null} k
   */
  point(job, k) {
    const words =
      k === null ? "Choose an image to see how it came about." : `${this.nameOf(job)}, ${this.imageName(job, k)}`;
    this.caption.textContent = words;
  }

  /** @param {number} k Show how this image came about. */
  choose(k) {
    this.#chosen = k;
    this.#drawPaths();
    const [row] = this.finished;
    if (row?.job) announce(`How ${this.imageName(row.job, k)} came about is shown below.`);
  }

  /** @returns {Row[]} */
  get finished() {
    return this.rows.filter(({ path }) => path);
  }

  /** Draw what is made of finished jobs. */
  redraw() {
    const rows = this.finished;
    if (!rows.length) return;
    this.caption.textContent ||= "Choose an image to see how it came about.";
    this.#drawPaths();
    this.figures.hidden = false;
    this.figures.replaceChildren(
      el("div", { class: "charts" }, this.#noiseChart(rows), this.#distanceChart(rows)),
      this.by === "D" ? costsOfD(rows) : costsOfSteps(rows),
    );
  }

  #drawPaths() {
    const rows = this.finished;
    if (!rows.length || !rows[0].job) return;
    this.paths.hidden = false;
    const room = this.pictures.clientWidth - 80;
    this.paths.replaceChildren(
      el("h3", {}, `How ${this.imageName(rows[0].job, this.#chosen)} came about`),
      el(
        "p",
        { class: "hint" },
        "What the network takes it for, from the highest noise level at the left to the image itself at the right.",
      ),
      ...rows.map((row) =>
        el("div", { class: "path" }, el("span", { class: "path-name" }, row.name), pathCanvas(row, this.#chosen, room)),
      ),
    );
  }

  /**
   * @param {Row[]} rows
   * @returns {HTMLElement}
   */
  #noiseChart(rows) {
    const isShared = this.by === "D"; // lines that hide one another would look as if some were missing
    const lines = rows.slice(0, isShared ? 1 : undefined).map(({ name, job, seen }) => {
      const levels = plannedLevels(job?.request ?? {});
      const points = levels.map((level, k) => /** @type {[number, number]} */ ([k + 1, level]));
      return isShared ? { name: "every D", points, isShared } : { name, points, dots: seen };
    });
    const note = isShared
      ? "What differs between the D is r = σ√D, how far from the data that noise level is; the table has it."
      : "Fewer steps are larger ones. Dots: estimates that were shown while it ran.";
    return chart(
      isShared ? "Noise level on the way: the same for every D" : "Noise level on the way",
      { title: "network evaluation" },
      { title: "noise level σ", isLogarithmic: true },
      lines,
      note,
    );
  }

  /**
   * @param {Row[]} rows
   * @returns {HTMLElement}
   */
  #distanceChart(rows) {
    const lines = rows.map((row) => {
      const distances = row.distances;
      return {
        name: row.name,
        points: distances.map((distance, k) => /** @type {[number, number]} */ ([k + 1, distance])),
      };
    });
    return chart(
      "How soon the images settle",
      { title: "step" },
      { title: "distance to the final image" },
      lines,
      "Root of the mean square over all pixels from 0 to 1.",
    );
  }
}

/**
 * Without times, which would be taken for what D does.
 *
 * @param {Row[]} rows
 * @returns {HTMLElement}
 */
function costsOfD(rows) {
  const cells = rows.map((row) => {
    const { request, latency } = /** @type {Job} */ (row.job);
    return [dimension(request.D), amount(latency?.evaluations ?? 0), radius(request)];
  });
  return table(
    "What it took",
    ["D", "Evaluations of an image", "r = σ√D at first"],
    cells,
    "The network is asked equally often whatever D is. The jobs ran beside each other, so how long each took tells " +
      "of their order, not of D.",
  );
}

/**
 * @param {Row[]} rows
 * @returns {HTMLElement}
 */
function costsOfSteps(rows) {
  const most = rows.reduce((a, b) => ((b.job?.request.steps ?? 0) > (a.job?.request.steps ?? 0) ? b : a));
  const cells = rows.map((row) => {
    const { request, latency } = /** @type {Job} */ (row.job);
    return [
      String(request.steps),
      amount(latency?.evaluations ?? 0),
      duration(latency?.sampling_seconds ?? 0),
      duration(latency?.total_seconds ?? 0),
      row === most ? "–" : short(finalDistance(row, most)),
    ];
  });
  return table(
    "What it took",
    ["Steps", "Evaluations", "Sampled in", "In all", `Distance to ${most.job?.request.steps} steps`],
    cells,
    "The jobs ran beside each other; alone, each is quicker.",
  );
}

/**
 * @param {Record<string, any>} request
 * @returns {string}
 */
function radius({ D, sigma_max }) {
  return D === "inf" ? "∞" : amount(Number((sigma_max * Math.sqrt(Number(D))).toPrecision(4)));
}

/** The view that compares: the form, and the jobs that it made side by side. */

import { submit } from "./api.js";
import { Comparison } from "./comparison.js";
import { CompareForm } from "./compareform.js";
import { byId, el, reveal } from "./dom.js";
import { Problem } from "./problem.js";
import { note, remember, remembered } from "./route.js";
import { Row } from "./row.js";
import { dimension, named } from "./words.js";

/** @import { Model, SampleRequest } from "./types.js" */
/** @import { Route } from "./route.js" */

export class CompareView {
  /** @type {Model[]} */
  models = [];
  /** @type {Comparison | null} */
  #shown = null;
  #ids = "";
  #isCurrent = false;
  #isFilled = false;

  constructor() {
    this.form = new CompareForm("compare", {
      title: "Compare",
      submit: "Compare",
      onSubmit: (request) => this.#submit(request),
      onChange: () => this.#changed(),
    });
    this.stage = el("div", { class: "stage" });
    byId("compare").append(this.form.element, this.stage);
    this.stage.replaceChildren(
      el(
        "div",
        { class: "empty" },
        el("p", { class: "empty-title" }, "The same seeds, side by side"),
        el(
          "p",
          { class: "hint" },
          "PFGM++ lays the data into D more dimensions, as charges, and goes back to them along the lines " +
            "of the electric field. A small D has heavy tails and forgives errors; a large D is diffusion.",
        ),
      ),
    );
  }

  /** @param {Model[]} models */
  offer(models) {
    this.models = models;
    this.form.offer(models);
  }

  /** @param {Route} route */
  enter({ values: { jobs = "", ...values } }) {
    this.#isCurrent = true;
    if (!this.models.length) return;
    if (!this.#isFilled || Object.keys(values).length) {
      this.#isFilled = true;
      if (Object.keys(values).length) this.form.fill(values);
      else this.form.values = remembered("compare");
    }
    if (jobs && jobs !== this.#ids) this.#find(jobs);
    this.#changed();
  }

  leave() {
    this.#isCurrent = false;
    this.form.forgive();
  }

  #changed() {
    const { values } = this.form;
    if (this.form.by !== this.#shown?.by) this.#ids = "";
    remember("compare", values);
    if (this.#isCurrent) note("compare", { ...values, jobs: this.#ids });
  }

  /**
   * @param {SampleRequest} base Submitted; what is shown stays if the service would not have it.
   * @returns {Promise<void>}
   */
  async #submit(base) {
    const isSeeded = base.seed !== undefined || base.seeds;
    const [drawn] = crypto.getRandomValues(new Uint32Array(1));
    const seeded = isSeeded ? base : { ...base, seed: drawn };
    try {
      await this.form.estimateOf(seeded, new AbortController().signal);
    } catch (error) {
      if (error instanceof Problem) {
        this.form.refuse(error);
        return this.form.focusFault();
      }
    }
    const comparison = this.#show();
    /** @type {string[]} */
    const ids = [];
    const keep = (/** @type {string[]} */ known) => this.#keep(comparison, known);
    const rows = this.form.requestsOf(seeded).map((request, place) => {
      const name = this.form.by === "D" ? named("D", dimension(request.D)) : `${request.steps} steps`;
      const row = new Row(name, begin, comparison);
      async function begin() {
        const job = await submit(request, { signal: comparison.signal, onWait: row.wait });
        ids[place] = job.id;
        keep(ids);
        return job;
      }
      return row;
    });
    comparison.run(rows);
    comparison.title.focus({ preventScroll: true });
    reveal(this.stage);
  }

  /**
   * Have the address name the jobs, so that they are found again.
   *
   * @param {Comparison} comparison
   * @param {string[]} ids
   */
  #keep(comparison, ids) {
    if (this.#shown !== comparison) return;
    this.#ids = ids.filter(Boolean).join(",");
    this.#changed();
  }

  /** @param {string} jobs Show those again that were compared. */
  #find(jobs) {
    const comparison = this.#show();
    this.#ids = jobs;
    comparison.run(jobs.split(",").map((id) => new Row("", async () => ({ id }), comparison)));
  }

  /** @returns {Comparison} */
  #show() {
    this.#shown?.close();
    this.#ids = "";
    const comparison = (this.#shown = new Comparison(this.form.by, this.models));
    this.stage.replaceChildren(comparison.element);
    return comparison;
  }
}

/** The view that samples: the form, and the job that it made. */

import { submit } from "./api.js";
import { announce, byId, el, reveal } from "./dom.js";
import { Form } from "./form.js";
import { JobView } from "./job.js";
import { modelOf, PREVIEWS, valuesOfJob } from "./request.js";
import { note, remember, remembered } from "./route.js";
import { errorWords } from "./words.js";

/** @import { Job, Model, SampleRequest } from "./types.js" */
/** @import { Route } from "./route.js" */

export class SampleView {
  /** @type {Model[]} */
  models = [];
  /** @type {JobView | null} */
  #shown = null;
  /** @type {AbortController | null} */
  #submitting = null;
  #isCurrent = false;
  #isFilled = false;

  constructor() {
    this.form = new Form("sample", {
      title: "Sample images",
      submit: "Sample",
      onSubmit: (request) => this.#submit(request),
      onChange: () => this.#changed(),
    });
    this.stage = el("div", { class: "stage" });
    byId("sample").append(this.form.element, this.stage);
    this.#showNothing();
  }

  /** @param {Model[]} models */
  offer(models) {
    this.models = models;
    this.form.offer(models);
    if (!this.#isFilled && models.length) this.#fill({});
  }

  /** @param {Route} route */
  enter({ view, id, values }) {
    this.#isCurrent = view === "sample";
    if (Object.keys(values).length || !this.#isFilled) this.#fill(values);
    if (view !== "job") return this.#changed();
    if (this.#shown?.id === id) return;
    this.#watch(id);
  }

  leave() {
    this.#isCurrent = false;
  }

  /** @param {Record<string, string>} values */
  #fill(values) {
    if (!this.models.length) return;
    this.#isFilled = true;
    this.form.values = Object.keys(values).length ? values : remembered("sample");
  }

  #changed() {
    if (!this.#isFilled) return;
    const { values } = this.form;
    remember("sample", values);
    if (this.#isCurrent) note("sample", values);
  }

  /** @param {SampleRequest} request */
  async #submit(request) {
    this.#submitting?.abort();
    const stopping = (this.#submitting = new AbortController());
    const words = el("p", { role: "status" }, "Sending…");
    const stop = el(
      "button",
      { type: "button", onclick: () => stopping.abort(new DOMException("stopped", "AbortError")) },
      "Stop trying",
    );
    this.#show(
      el("div", { class: "card job" }, el("h2", {}, "Not queued yet"), words, el("div", { class: "actions" }, stop)),
    );
    try {
      const onWait = (/** @type {string} */ each) => (words.textContent = each || "Sending…");
      const job = await submit({ ...request, previews: PREVIEWS }, { signal: stopping.signal, onWait });
      location.hash = `#/job/${job.id}`;
      announce("Queued.");
    } catch (error) {
      if (this.#submitting === stopping) this.#refused(stopping.signal.aborted ? null : error);
    }
  }

  /** @param {unknown} error Null when the user gave it up. */
  #refused(error) {
    this.#showNothing();
    if (error === null) return;
    this.form.refuse(error);
    this.form.focusFault();
    announce(`Refused: ${errorWords(error)}`);
  }

  /** @param {string} id */
  #watch(id) {
    const view = new JobView(id, { models: this.models, onReuse: (job) => this.#reuse(job) });
    this.#show(view.element);
    this.#shown = view;
    view.run();
  }

  /** @param {HTMLElement} element */
  #show(element) {
    this.#shown?.close();
    this.#shown = null;
    this.stage.replaceChildren(element);
    reveal(this.stage);
  }

  #showNothing() {
    this.#show(
      el(
        "div",
        { class: "empty" },
        el("p", { class: "empty-title" }, "Pictures appear here"),
        el(
          "p",
          { class: "hint" },
          "PFGM++ is one family of generative models: PFGM at D = 1, diffusion at D = ∞, and all between.",
        ),
      ),
    );
  }

  /** @param {Job} job */
  #reuse(job) {
    const model = modelOf(this.models, job);
    if (!model) return;
    this.form.values = { ...EMPTY, ...valuesOfJob(job, model) };
    this.form.fields.count.focus();
    announce("The form has the settings of this job.");
  }
}

/** What a form holds of which nothing is said. */
const EMPTY = { columns: "", guidance: "", precision: "", scale: "", solver: "heun" };

/** The view that samples: the form, and the job that it made. */

import { submit } from "./api.js";
import { announce, byId, el, reveal, say } from "./dom.js";
import { Form } from "./form.js";
import { JobView } from "./job.js";
import { modelOf, PREVIEWS, valuesOfJob } from "./request.js";
import { note, remember, remembered } from "./route.js";
import { errorWords, named } from "./words.js";

/** @import { OnWait } from "./api.js" */
/** @import { Job, Model, SampleRequest } from "./types.js" */
/** @import { Route } from "./route.js" */

export class SampleView {
  /** @type {Model[]} */
  models = [];
  /** @type {JobView | null} */
  #shown = null;
  #view = ""; // of the address, while it is one of these
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
    const before = this.#shown?.model;
    this.models = models;
    this.form.offer(models);
    if (!before && this.#shown?.model) this.#watch(this.#shown.id); // now its classes have names
  }

  /** @param {Route} route */
  enter({ view, id, values }) {
    this.#view = view;
    if (Object.keys(values).length || !this.#isFilled) this.#fill(values);
    if (view !== "job") return this.#changed();
    if (this.#shown?.id === id) return;
    this.#watch(id);
  }

  leave() {
    this.#view = "";
    this.form.forgive();
  }

  /** @param {Record<string, string>} values */
  #fill(values) {
    if (!this.models.length) return;
    this.#isFilled = true;
    if (Object.keys(values).length) this.form.fill(values);
    else this.form.values = remembered("sample");
  }

  #changed() {
    if (!this.#isFilled) return;
    const { values } = this.form;
    remember("sample", values);
    if (this.#view === "sample") note("sample", values);
  }

  /** @param {SampleRequest} request Submitted; what is shown stays until there is a job to show. */
  async #submit(request) {
    const stopping = new AbortController();
    const words = el("p", { role: "status" });
    const stop = el(
      "button",
      { type: "button", onclick: () => stopping.abort(new DOMException("stopped", "AbortError")) },
      "Stop trying",
    );
    const pending = el(
      "div",
      { class: "card job pending" },
      el("h2", {}, "Not queued yet"),
      words,
      el("div", { class: "actions" }, stop),
    );
    /** @type {OnWait} */
    const onWait = (why, seconds) => {
      say(words, why, seconds);
      if (!why || pending.isConnected) return;
      this.stage.prepend(pending);
      reveal(this.stage);
    };
    try {
      const job = await submit({ ...request, previews: PREVIEWS }, { signal: stopping.signal, onWait });
      if (this.#view) location.hash = `#/job/${job.id}`;
      else this.#watch(job.id); // to be seen when this view is
      announce("Queued.");
    } catch (error) {
      if (!stopping.signal.aborted) this.#refused(error);
    } finally {
      pending.remove();
    }
  }

  /** @param {unknown} error */
  #refused(error) {
    this.form.refuse(error);
    this.form.focusFault();
    announce(`Refused: ${errorWords(error)}`);
  }

  /** @param {string} id */
  #watch(id) {
    const view = new JobView(id, { modelOf: (job) => modelOf(this.models, job), onReuse: (job) => this.#reuse(job) });
    this.#show(view.element);
    this.#shown = view;
    view.run();
  }

  /** @param {HTMLElement} element */
  #show(element) {
    this.#shown?.close();
    this.#shown = null;
    const pending = this.stage.querySelectorAll(".pending");
    this.stage.replaceChildren(...pending, element);
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
          `PFGM++ is one family of generative models: PFGM at ${named("D", "1")}, diffusion at ${named("D", "∞")}, ` +
            "and all between.",
        ),
      ),
    );
  }

  /** @param {Job} job */
  #reuse(job) {
    const model = modelOf(this.models, job);
    if (!model) return;
    this.form.values = valuesOfJob(job, model);
    this.form.fields.count.focus();
    announce("The form has the settings of this job.");
  }
}

/** Fields of a form: a label, an input, a hint, and room for what is wrong with it. */

import { el } from "./dom.js";

/** @typedef {{value: string, text: string}} Option */

/** What forms know of a field. */
export class Field {
  /**
   * @param {string} name
   * @param {string} label
   * @param {HTMLElement & {value: string}} input
   * @param {string} [hint]
   */
  constructor(name, label, input, hint = "") {
    this.name = name;
    this.input = input;
    this.hint = el("p", { class: "hint", id: `${input.id}-hint` }, hint);
    this.error = el("p", { class: "error", id: `${input.id}-error` });
    input.setAttribute("aria-describedby", `${this.hint.id} ${this.error.id}`);
    this.element = el(
      "div",
      { class: `field field-${name}` },
      el("label", { for: input.id }, label),
      input,
      this.hint,
      this.error,
    );
  }

  /** @returns {string} */
  get value() {
    return this.input.value.trim();
  }

  set value(value) {
    this.input.value = value;
  }

  /** @param {string} words What is wrong; "" for nothing. */
  fault(words) {
    this.error.textContent = words;
    this.input.toggleAttribute("aria-invalid", words !== "");
    if (words) this.input.setAttribute("aria-invalid", "true");
  }

  /** @returns {string} What is wrong with what is typed, before anyone else is asked. */
  check() {
    return "";
  }

  /**
   * @param {string} value What it was set to.
   * @returns {boolean} Whether it holds that.
   */
  takes(value) {
    return this.value === value.trim();
  }

  focus() {
    this.input.focus();
  }
}

export class TextField extends Field {
  /**
   * @param {string} form
   * @param {string} name
   * @param {string} label
   * @param {{hint?: string, placeholder?: string, value?: string}} [options]
   */
  constructor(form, name, label, { hint, placeholder, value } = {}) {
    const attributes = {
      id: `${form}-${name}`,
      name,
      type: "text",
      placeholder,
      value,
      autocomplete: "off",
      spellcheck: "false",
    };
    super(name, label, el("input", attributes), hint);
  }
}

export class NumberField extends Field {
  /**
   * @param {string} form
   * @param {string} name
   * @param {string} label
   * @param {{min: number, max?: number, step?: number | "any", hint?: string, value?: string}} options
   */
  constructor(form, name, label, { min, max, step = 1, hint, value = "" }) {
    const isWhole = step === 1;
    const number = el("input", {
      id: `${form}-${name}`,
      name,
      type: "number",
      min,
      max,
      step,
      value,
      autocomplete: "off",
      inputmode: isWhole ? "numeric" : "decimal",
    });
    super(name, label, number, hint);
    this.number = number;
  }

  /** @param {{max?: number, placeholder?: string}} bounds */
  bound({ max, placeholder }) {
    if (max !== undefined) this.number.max = String(max);
    if (placeholder !== undefined) this.number.placeholder = placeholder;
  }

  check() {
    const { validity, min, max, step } = this.number;
    if (validity.valid) return "";
    const kind = step === "1" ? "a whole number" : "a number";
    if (validity.rangeUnderflow || validity.rangeOverflow)
      return `must be ${kind} ${max ? `from ${min} to ${max}` : `of at least ${min}`}`;
    return `must be ${kind}`;
  }
}

export class SelectField extends Field {
  /**
   * @param {string} form
   * @param {string} name
   * @param {string} label
   * @param {{options?: Option[], hint?: string}} [options]
   */
  constructor(form, name, label, { options = [], hint } = {}) {
    const select = el("select", { id: `${form}-${name}`, name });
    super(name, label, select, hint);
    this.select = select;
    this.offer(options);
  }

  /** @param {Option[]} options What there is to choose; what is chosen stays so if it is among them. */
  offer(options) {
    const before = this.select.value;
    this.select.replaceChildren(...options.map(({ value, text }) => el("option", { value }, text)));
    this.select.value = options.some(({ value }) => value === before) ? before : (options[0]?.value ?? "");
  }

  get value() {
    return this.select.value;
  }

  /** What is not on offer is left alone. */
  set value(value) {
    if ([...this.select.options].some((option) => option.value === value)) this.select.value = value;
  }
}

export class CheckField extends Field {
  /**
   * @param {string} form
   * @param {string} name
   * @param {string} label
   * @param {{hint?: string}} [options]
   */
  constructor(form, name, label, { hint } = {}) {
    const box = el("input", { id: `${form}-${name}`, name, type: "checkbox" });
    super(name, label, box, hint);
    this.box = box;
    this.element.replaceChildren(el("label", { class: "check" }, box, ` ${label}`), this.hint, this.error);
  }

  get value() {
    return this.box.checked ? "on" : "";
  }

  set value(value) {
    this.box.checked = value !== "";
  }

  takes() {
    return true;
  }
}

/** A few options side by side: one of them, or several; the value lists those chosen with commas. */
export class ChoiceField {
  /**
   * @param {string} form
   * @param {string} name
   * @param {string} label
   * @param {{isMany?: boolean, hint?: string, more?: Node}} [options]
   */
  constructor(form, name, label, { isMany = false, hint = "", more } = {}) {
    this.form = form;
    this.name = name;
    this.type = isMany ? "checkbox" : "radio";
    this.hint = el("p", { class: "hint", id: `${form}-${name}-hint` }, hint);
    this.error = el("p", { class: "error", id: `${form}-${name}-error` });
    this.options = el("div", { class: "choices" });
    this.element = el(
      "fieldset",
      { class: `field field-${name}`, "aria-describedby": `${this.hint.id} ${this.error.id}` },
      el("legend", {}, label),
      this.options,
      this.hint,
      more ?? null,
      this.error,
    );
  }

  /** @returns {HTMLInputElement[]} */
  get inputs() {
    return [...this.options.querySelectorAll("input")];
  }

  /**
   * @param {Option[]} options Made anew only if they are others, for what has the focus would lose it.
   * @param {string[]} usual What is chosen of them at first.
   */
  offer(options, usual) {
    if (this.inputs.map(({ value }) => value).join() === options.map(({ value }) => value).join()) return;
    const before = this.value;
    this.options.replaceChildren(
      ...options.map(({ value, text }, k) =>
        el(
          "label",
          { class: "choice" },
          el("input", {
            type: this.type,
            name: `${this.form}-${this.name}`,
            id: `${this.form}-${this.name}-${k}`,
            value,
            checked: usual.includes(value),
          }),
          el("span", {}, text),
        ),
      ),
    );
    this.value = before;
  }

  get value() {
    return this.inputs
      .filter((input) => input.checked)
      .map((input) => input.value)
      .join(",");
  }

  set value(value) {
    const chosen = value.split(",");
    if (!this.inputs.some((input) => chosen.includes(input.value))) return;
    for (const input of this.inputs) input.checked = chosen.includes(input.value);
  }

  /**
   * @param {string} value
   * @returns {boolean}
   */
  takes(value) {
    const chosen = this.value.split(",");
    return value.split(",").every((each) => chosen.includes(each));
  }

  /** @param {string} words */
  fault(words) {
    this.error.textContent = words;
  }

  /** @returns {string} */
  check() {
    return this.value ? "" : "choose at least one";
  }

  focus() {
    (this.inputs.find((input) => input.checked) ?? this.inputs[0])?.focus();
  }
}

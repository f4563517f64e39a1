/** The caller's API key: kept for this tab, or on request for this browser; asked for in a dialog. */

import { byId, el } from "./dom.js";

const NAME = "pfgmpp-key";

/** @type {Promise<boolean> | null} */
let asking = null;
let isDeclined = false;

/** @returns {string} The key; "" without one. */
export function currentKey() {
  return sessionStorage.getItem(NAME) ?? localStorage.getItem(NAME) ?? "";
}

/** @returns {Record<string, string>} The headers that show the key. */
export function keyHeaders() {
  const key = currentKey();
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/** Let the next request that needs a key ask for one, even if it was declined before. */
export function allowAsking() {
  isDeclined = false;
}

/**
 * Whether there is another key than the one that was refused: asks for one unless that was declined.
 *
 * @param {string} refused
 * @returns {Promise<boolean>}
 */
export async function askForKey(refused) {
  if (currentKey() !== refused) return true;
  if (isDeclined) return false;
  asking ??= ask(refused ? "The service does not know this key, or no longer." : "").finally(() => (asking = null));
  return asking;
}

/** Show the button that changes the key: there where a service has asked for one. */
function offerChange() {
  byId("key-button").hidden = false;
}

/**
 * @param {string} reason
 * @returns {Promise<boolean>}
 */
function ask(reason) {
  offerChange();
  const input = el("input", { id: "key", type: "password", autocomplete: "off", spellcheck: "false", required: true });
  const remember = el("input", { id: "key-remember", type: "checkbox" });
  const error = el("p", { class: "error", id: "key-error", role: "alert" }, reason);
  input.setAttribute("aria-describedby", "key-error");
  const dialog = el(
    "dialog",
    { class: "key-dialog", "aria-labelledby": "key-title" },
    el(
      "form",
      { method: "dialog" },
      el("h2", { id: "key-title" }, "This service asks for a key"),
      el("p", {}, "Whoever runs it makes keys with ", el("code", {}, "pfgmpp keys add NAME"), "."),
      el("div", { class: "field" }, el("label", { for: "key" }, "API key"), input, error),
      el("label", { class: "check" }, remember, " Remember it in this browser"),
      el(
        "div",
        { class: "actions" },
        el("button", { class: "primary", value: "use" }, "Use this key"),
        el("button", { value: "", formnovalidate: true }, "Not now"),
        currentKey() && !reason ? el("button", { value: "forget", formnovalidate: true }, "Forget the key") : null,
      ),
    ),
  );
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const key = input.value.trim();
      const isGiven = dialog.returnValue === "use" && key !== "";
      isDeclined = !isGiven;
      if (dialog.returnValue === "forget") forgetKey();
      if (isGiven) keep(key, remember.checked);
      dialog.remove();
      resolve(isGiven);
    });
  });
}

/**
 * @param {string} key
 * @param {boolean} isForLong
 */
function keep(key, isForLong) {
  forgetKey();
  (isForLong ? localStorage : sessionStorage).setItem(NAME, key);
}

/** Be nobody again. */
function forgetKey() {
  sessionStorage.removeItem(NAME);
  localStorage.removeItem(NAME);
}

/** Have the button of the page change the key. */
export function installKeyButton() {
  byId("key-button").hidden = !currentKey();
  byId("key-button").addEventListener("click", async () => {
    const before = currentKey();
    if ((await ask("")) || currentKey() !== before) location.reload();
  });
}

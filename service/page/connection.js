/** Whether the service can be reached; while it cannot, one loop asks again with growing pauses. */

import { pause } from "./dom.js";

const LONGEST_PAUSE_SECONDS = 15;

class Connection extends EventTarget {
  isLost = false;
  /** @type {Promise<void>} */
  #found = Promise.resolve();
  /** @type {AbortController | null} */
  #resting = null;

  /** Note that the service did not answer. */
  lose() {
    if (this.isLost) return;
    this.isLost = true;
    this.#found = this.#search();
  }

  /** Ask now rather than after the pause. */
  hurry() {
    this.#resting?.abort();
  }

  /**
   * Resolves as soon as the service answers again; rejects when the signal is given.
   *
   * @param {AbortSignal} [signal]
   * @returns {Promise<void>}
   */
  async found(signal) {
    signal?.throwIfAborted();
    const given = new Promise((_, reject) => {
      signal?.addEventListener("abort", () => reject(signal.reason), { once: true });
    });
    await Promise.race([this.#found, given]);
  }

  async #search() {
    for (let seconds = 1; ; seconds = Math.min(2 * seconds, LONGEST_PAUSE_SECONDS)) {
      this.dispatchEvent(new CustomEvent("lost", { detail: { seconds } }));
      this.#resting = new AbortController();
      await pause(seconds, this.#resting.signal).catch(() => {});
      if (await answers()) break;
    }
    this.isLost = false;
    this.dispatchEvent(new Event("found"));
  }
}

/** @returns {Promise<boolean>} */
async function answers() {
  try {
    return (await fetch("/livez", { cache: "no-store" })).ok;
  } catch {
    return false;
  }
}

export const connection = new Connection();

window.addEventListener("online", () => connection.hurry());

/** Why a request came to nothing. */

/** @import { FieldError, ProblemDocument } from "./types.js" */

/** The service refused; the message says why. */
export class Problem extends Error {
  /**
   * @param {ProblemDocument} document
   * @param {number} retryAfterSeconds 0 if it does not say.
   */
  constructor(document, retryAfterSeconds) {
    super(document.detail);
    this.status = document.status;
    this.code = document.code;
    /** @type {FieldError[]} */
    this.errors = document.errors ?? [];
    this.retryAfterSeconds = retryAfterSeconds;
  }
}

/** The service did not answer. */
export class Unreachable extends Error {
  constructor() {
    super("The service does not answer.");
  }
}

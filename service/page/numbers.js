/** JSON with whole numbers of any size: seeds reach 2^63, where JavaScript's numbers have no more digits. */

/**
 * The value in a JSON text; whole numbers that would lose digits come as BigInt (where the browser tells their digits).
 *
 * @param {string} text
 * @returns {any}
 */
export function parse(text) {
  return JSON.parse(
    text,
    /** @type {any} */ (
      (/** @type {string} */ _, /** @type {any} */ value, /** @type {{source?: string}} */ context) => {
        if (value === Infinity || value === -Infinity) throw new SyntaxError("a number is too large");
        const isRounded = Number.isInteger(value) && !Number.isSafeInteger(value);
        return isRounded && context?.source && /^\d+$/.test(context.source) ? BigInt(context.source) : value;
      }
    ),
  );
}

/**
 * A value, with BigInts anywhere in it, as JSON.
 *
 * @param {any} value
 * @param {number} [indent]
 * @returns {string}
 */
export function stringify(value, indent) {
  const marked = JSON.stringify(value, (_, each) => (typeof each === "bigint" ? `\u0000${each}` : each), indent);
  return marked.replace(/"\\u0000(\d+)"/g, "$1");
}

/**
 * The whole number that a text says: a number, or a BigInt if that has not as many digits; null if it says none.
 *
 * @param {string} text
 * @returns {number | bigint | null}
 */
export function wholeNumber(text) {
  if (!/^\d+$/.test(text)) return null;
  return Number.isSafeInteger(Number(text)) ? Number(text) : BigInt(text);
}

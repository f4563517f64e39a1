/** The noise levels that a request goes through, as EDM has them. */

/**
 * The noise level of every evaluation of the network for one image, but for noise that a solver adds on its way.
 *
 * @param {Record<string, any>} request As its job echoes it.
 * @returns {number[]} None if the request has levels of another kind.
 */
export function plannedLevels({ steps, solver, sigma_min, sigma_max, rho = 7, discretization = "edm" }) {
  if (discretization !== "edm") return [];
  const [first, last] = [sigma_max ** (1 / rho), sigma_min ** (1 / rho)];
  const levels = Array.from({ length: steps }, (_, i) => (first + (i / (steps - 1)) * (last - first)) ** rho);
  return isSecondOrder(solver) ? levels.flatMap((level, i) => (i ? [level, level] : [level])) : levels;
}

/**
 * How many network evaluations an image takes.
 *
 * @param {string} solver
 * @param {number} steps
 * @returns {number}
 */
export function evaluationsOf(solver, steps) {
  return isSecondOrder(solver) ? 2 * steps - 1 : steps;
}

/**
 * @param {string} solver
 * @returns {boolean} Whether it asks the network twice on every step but the last.
 */
function isSecondOrder(solver) {
  return solver === "heun" || solver === "churn";
}

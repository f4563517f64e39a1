/** A line chart: a few lines, axes with readable numbers, a legend. */

import { el, svg } from "./dom.js";

/**
 * @typedef {object} Line
 * @property {string} name
 * @property {[number, number][]} points
 * @property {[number, number][]} [dots] What was seen of it.
 * @property {boolean} [isShared] Whether it is of all that is compared rather than of one.
 *
 * @typedef {object} Axis
 * @property {string} title
 * @property {boolean} [isLogarithmic]
 *
 * @typedef {{low: number, high: number, isLogarithmic: boolean, ticks: number[], at: (value: number) => number}} Scale
 */

/** CSS pixels; the width is what there is. */
const HEIGHT = 240;
const MARGIN = { left: 54, right: 8, top: 8, bottom: 42 };

/**
 * @param {string} title
 * @param {Axis} x
 * @param {Axis} y
 * @param {Line[]} lines
 * @param {string} [note]
 * @returns {HTMLElement}
 */
export function chart(title, x, y, lines, note = "") {
  const drawing = svg("svg", {
    class: "drawing",
    height: HEIGHT,
    role: "img",
    "aria-label": `${title}. ${y.title} against ${x.title}.`,
  });
  new ResizeObserver(([{ contentRect }]) => fill(drawing, contentRect.width, x, y, lines)).observe(drawing);
  const legend = lines.map(({ name }, k) =>
    el(
      "li",
      {},
      svg(
        "svg",
        { viewBox: "0 0 24 8", class: `sample-line ${colour(lines[k], k)}`, "aria-hidden": true },
        svg("path", { d: "M0 4H24" }),
      ),
      name,
    ),
  );
  return el(
    "figure",
    { class: "chart" },
    el("figcaption", {}, title),
    drawing,
    el("ul", { class: "chart-legend" }, ...legend),
    note ? el("p", { class: "hint" }, note) : null,
  );
}

/**
 * @param {SVGElement} drawing Drawn anew.
 * @param {number} width CSS pixels.
 * @param {Axis} x
 * @param {Axis} y
 * @param {Line[]} lines
 */
function fill(drawing, width, x, y, lines) {
  if (width <= MARGIN.left + MARGIN.right) return;
  const points = lines.flatMap((line) => [...line.points, ...(line.dots ?? [])]);
  const across = scaleOf(
    points.map(([value]) => value),
    x.isLogarithmic,
    MARGIN.left,
    width - MARGIN.right,
  );
  const up = scaleOf(
    points.map(([, value]) => value),
    y.isLogarithmic,
    HEIGHT - MARGIN.bottom,
    MARGIN.top,
  );
  drawing.replaceChildren(
    ...axes(across, up, width, x.title, y.title),
    ...lines.flatMap((line, k) => drawn(line, k, across, up)),
  );
}

/**
 * @param {Line} line
 * @param {number} k
 * @returns {string} Its class.
 */
function colour({ isShared }, k) {
  return isShared ? "line-shared" : `line-${k % 6}`;
}

/**
 * @param {Line} line
 * @param {number} k
 * @param {Scale} across
 * @param {Scale} up
 * @returns {SVGElement[]}
 */
function drawn(line, k, across, up) {
  const { points, dots = [], name } = line;
  const places = points.map(([x, y], place) => `${place ? "L" : "M"}${across.at(x).toFixed(1)} ${up.at(y).toFixed(1)}`);
  const path = svg("path", { class: `line ${colour(line, k)}`, d: places.join("") }, svg("title", {}, name));
  const marks = dots.map(([x, y]) =>
    svg(
      "circle",
      { class: `dot ${colour(line, k)}`, cx: across.at(x), cy: up.at(y), r: 2.4 },
      svg("title", {}, `${name}: ${short(x)}, ${short(y)}`),
    ),
  );
  return [path, ...marks];
}

/**
 * @param {Scale} across
 * @param {Scale} up
 * @param {number} width
 * @param {string} xTitle
 * @param {string} yTitle
 * @returns {SVGElement[]}
 */
function axes(across, up, width, xTitle, yTitle) {
  const [left, right, bottom, top] = [MARGIN.left, width - MARGIN.right, HEIGHT - MARGIN.bottom, MARGIN.top];
  return [
    ...up.ticks.flatMap((tick) => [
      svg("path", { class: "rule", d: `M${left} ${up.at(tick)}H${right}` }),
      svg(
        "text",
        { x: left - 8, y: up.at(tick), class: "tick", "text-anchor": "end", "dominant-baseline": "middle" },
        short(tick),
      ),
    ]),
    ...across.ticks.map((tick) =>
      svg("text", { x: across.at(tick), y: bottom + 18, class: "tick", "text-anchor": "middle" }, short(tick)),
    ),
    svg("path", { class: "axis", d: `M${left} ${bottom}H${right}` }),
    svg("text", { x: (left + right) / 2, y: HEIGHT - 5, class: "axis-title", "text-anchor": "middle" }, xTitle),
    svg(
      "text",
      { transform: `translate(11 ${(top + bottom) / 2}) rotate(-90)`, class: "axis-title", "text-anchor": "middle" },
      yTitle,
    ),
  ];
}

/**
 * @param {number[]} values
 * @param {boolean | undefined} isLogarithmic
 * @param {number} start Where the lowest is drawn.
 * @param {number} end
 * @returns {Scale}
 */
function scaleOf(values, isLogarithmic = false, start, end) {
  const ticks = isLogarithmic
    ? powers(Math.min(...values), Math.max(...values))
    : steps(Math.min(0, ...values), Math.max(...values, 1e-9));
  const [low, high] = isLogarithmic
    ? [Math.min(...values), Math.max(...values)]
    : [ticks[0], Math.max(ticks[ticks.length - 1], ...values)];
  const warp = isLogarithmic ? Math.log : Number;
  const at = (/** @type {number} */ value) =>
    start + ((warp(value) - warp(low)) / (warp(high) - warp(low) || 1)) * (end - start);
  return { low, high, isLogarithmic, ticks, at };
}

/**
 * @param {number} low
 * @param {number} high
 * @returns {number[]} The powers of ten between.
 */
function powers(low, high) {
  const [first, last] = [Math.ceil(Math.log10(low) - 1e-9), Math.floor(Math.log10(high) + 1e-9)];
  return Array.from({ length: Math.max(0, last - first + 1) }, (_, k) => Number(`1e${first + k}`));
}

/**
 * @param {number} low
 * @param {number} high
 * @returns {number[]} About five round numbers between.
 */
function steps(low, high) {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough) ?? 10 * power;
  const first = Math.floor(low / step);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, k) =>
    Number(((first + k) * step).toPrecision(12)),
  );
}

/**
 * @param {number} value
 * @returns {string}
 */
export function short(value) {
  return String(Number(value.toPrecision(3)));
}

// Perplexity by position: a table, and a curve for each rule of context extension.

import { make } from "./elements.js";
import { spellLength } from "./needles.js";

const WIDE = 440;
const HIGH = 220;

/** The result of `ringworld eval perplexity`. Throws an Error when it is none. */
export function showPerplexity(result) {
  const curves = result?.curves;
  const fits = (curve) => Number.isFinite(curve?.loss) && curve.buckets?.length === curve.losses?.length;
  if (!Array.isArray(curves) || !curves.length || !curves.every(fits)) {
    throw new Error("there are no curves in it");
  }
  const head = ["Rule", "Context", "Tokens", "Loss", "Perplexity"].map((words) => make("th", { scope: "col" }, words));
  const rows = curves.map(({ rule, context, tokens, loss, perplexity }) => {
    const cells = [spellLength(context), tokens.toLocaleString("en"), loss.toFixed(3), perplexity.toFixed(2)];
    return make("tr", {}, make("th", { scope: "row" }, rule), ...cells.map((words) => make("td", {}, words)));
  });
  const table = make("table", { className: "numbers" }, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows));
  const scroller = make("div", { className: "scroll", tabIndex: 0 }, table);
  scroller.setAttribute("role", "group");
  scroller.setAttribute("aria-label", "Perplexity by rule");
  return [scroller, ...(curves[0].losses.length > 1 ? [drawCurves(curves)] : [])];
}

function draw(name, attributes, words = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = words;
  return element;
}

/** The loss of each bucket of positions, positions by ratio. */
function drawCurves(curves) {
  const losses = curves.flatMap((curve) => curve.losses);
  const ends = curves.flatMap((curve) => curve.buckets.map(([, past]) => past));
  const [low, high] = [Math.min(...losses), Math.max(...losses)];
  const [near, far] = [Math.log(Math.min(...ends)), Math.log(Math.max(...ends))];
  const x = (position) => 44 + ((WIDE - 60) * (Math.log(position) - near)) / (far - near || 1);
  const y = (loss) => HIGH - 28 - ((HIGH - 48) * (loss - low)) / (high - low || 1);
  const chart = draw("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, class: "curves", role: "img" });
  chart.setAttribute("aria-label", `Loss by position, from ${low.toFixed(2)} to ${high.toFixed(2)} nats`);
  for (const loss of [low, (low + high) / 2, high]) {
    chart.append(draw("line", { x1: 44, x2: WIDE - 16, y1: y(loss), y2: y(loss) }));
    chart.append(draw("text", { x: 38, y: y(loss) + 4, "text-anchor": "end" }, loss.toFixed(2)));
  }
  for (const [i, curve] of curves.entries()) {
    const points = curve.buckets.map(([, past], j) => `${x(past)},${y(curve.losses[j])}`).join(" ");
    chart.append(draw("polyline", { points, class: `curve-${i % 4}` }));
  }
  const [first, last] = [Math.min(...ends), Math.max(...ends)];
  chart.append(draw("text", { x: 44, y: HIGH - 6 }, spellLength(first)));
  chart.append(draw("text", { x: WIDE - 16, y: HIGH - 6, "text-anchor": "end" }, `${spellLength(last)} tokens`));
  const names = curves.map((curve, i) => make("li", { className: `curve-${i % 4}` }, make("span", {}, curve.rule)));
  return make("figure", {}, chart, make("ul", { className: "legend" }, ...names));
}

// Needle maps: the share of needles found, by the length of the context and the depth in it.

import { make } from "./elements.js";

const MOST_MISSES = 50;

/** Tokens as 512, 4K or 1M. */
export function spellLength(tokens) {
  const step = [[2 ** 20, "M"], [2 ** 10, "K"]].find(([size]) => tokens >= size && tokens % size === 0);
  return step ? `${tokens / step[0]}${step[1]}` : tokens.toLocaleString("en");
}

/** The result of `ringworld eval needle` as a map for each rule. Throws an Error when it is none. */
export function showNeedles(result) {
  const trials = result?.trials;
  const numbers = (trial) => [trial?.length, trial?.depth].every(Number.isFinite);
  if (!Array.isArray(trials) || !trials.length || !trials.every(numbers)) {
    throw new Error("there are no trials in it");
  }
  const rules = [...new Set(trials.map((trial) => trial.rule ?? "plain"))];
  const stretched = rules.filter((rule) => rule !== "plain");
  if (!stretched.length) return showMap(trials, "");
  const inside = trials.filter((trial) => (trial.rule ?? "plain") === "plain");
  return stretched.flatMap((rule) => {
    const own = trials.filter((trial) => trial.rule === rule);
    const first = Math.min(...own.map((trial) => trial.length));
    return showMap([...inside.filter((trial) => trial.length < first), ...own], `, stretched by ${rule}`);
  });
}

function showMap(trials, how) {
  const sorted = (values) => [...new Set(values)].sort((a, b) => a - b);
  const lengths = sorted(trials.map((trial) => trial.length));
  const depths = sorted(trials.map((trial) => trial.depth));
  const right = trials.filter((trial) => trial.found).length;
  const head = make("tr", {}, make("th", { scope: "col" }, "depth"));
  for (const length of lengths) head.append(make("th", { scope: "col" }, spellLength(length)));
  const rows = depths.map((depth) => {
    const row = make("tr", {}, make("th", { scope: "row" }, `${Math.round(depth * 100)} %`));
    for (const length of lengths) row.append(showCell(trials, length, depth));
    return row;
  });
  const words = `${right} of ${trials.length} needles found${how}, by depth and context in tokens`;
  const caption = make("caption", {}, words);
  const map = make("table", { className: "map" }, caption, make("thead", {}, head), make("tbody", {}, ...rows));
  const scroller = make("div", { className: "scroll", tabIndex: 0 }, map);
  scroller.setAttribute("role", "group");
  scroller.setAttribute("aria-label", `Needle map: ${words}`);
  return [scroller, ...showMisses(trials)];
}

function showCell(trials, length, depth) {
  const here = trials.filter((trial) => trial.length === length && trial.depth === depth);
  if (!here.length) return make("td", {}, "–");
  const share = here.filter((trial) => trial.found).length / here.length;
  const cell = make("td", {}, share.toFixed(2));
  cell.style.setProperty("--share", `${share * 100}%`);
  return cell;
}

function showMisses(trials) {
  const missed = trials.filter((trial) => !trial.found);
  if (!missed.length) return [];
  const lines = missed.slice(0, MOST_MISSES).map(({ length, depth, city, number, response }) => {
    const place = `${spellLength(length)}, depth ${Math.round(depth * 100)} %`;
    return make("li", {}, `${place}: of ${city} it was ${number}, and the model wrote `, make("q", {}, String(response ?? "").trim()));
  });
  const more = missed.length > MOST_MISSES ? [make("li", {}, `and ${missed.length - MOST_MISSES} more`)] : [];
  const count = missed.length === 1 ? "The one that was missed" : `The ${missed.length} that were missed`;
  return [make("details", {}, make("summary", {}, count), make("ul", {}, ...lines, ...more))];
}

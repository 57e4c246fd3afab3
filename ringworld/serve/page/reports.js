// The reports of the model: needle maps, perplexity, and the whole report of a run.

import { findReports, loadReport } from "./api.js";
import { $, button, make } from "./elements.js";
import { showNeedles } from "./needles.js";
import { showPerplexity } from "./perplexity.js";
import { showReport } from "./report_page.js";

const FILLERS = { needle: showNeedles, perplexity: showPerplexity };
let loading = false;

function tellReports(words, failed = false) {
  $("reports-status").textContent = words;
  $("reports-status").classList.toggle("failed", failed);
}

/** Ask for the reports that there are now, and show them. */
export async function fillReports() {
  if (loading) return;
  loading = true;
  tellReports("loading");
  try {
    const { reports } = await findReports();
    $("no-reports").hidden = reports.length > 0;
    $("runs").replaceChildren(...reports.filter(({ kind }) => kind === "report").map(showOpener));
    const shown = [];
    for (const report of reports.filter(({ kind }) => kind in FILLERS)) {
      shown.push(await showFigures(report));
    }
    $("figures").replaceChildren(...shown);
    tellReports("");
  } catch (error) {
    tellReports(error.message, true);
  }
  loading = false;
}

function when({ modified }) {
  return new Date(modified * 1000).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
}

async function showFigures(report) {
  const whole = make("section", { className: "report" });
  const heading = make("h3", {}, report.name);
  const time = make("p", { className: "quiet" }, when(report));
  whole.append(heading, time);
  try {
    whole.append(...FILLERS[report.kind](JSON.parse(await loadReport(report.name))));
  } catch (error) {
    whole.append(make("p", { className: "failed" }, `cannot be shown: ${error.message}`));
  }
  return whole;
}

function showOpener(report) {
  const words = `Read ${report.name}, ${when(report)}`;
  return make("li", {}, button(words, () => openReport(report), { icon: "report", words }));
}

async function openReport(report) {
  try {
    showReport($("report-page"), await loadReport(report.name));
    $("report-name").textContent = report.name;
    $("overview").hidden = true;
    $("one-report").hidden = false;
    $("close-report").focus();
  } catch (error) {
    tellReports(error.message, true);
  }
}

/** Make the view work. */
export function listenToReports() {
  $("close-report").addEventListener("click", () => {
    $("one-report").hidden = true;
    $("overview").hidden = false;
    $("runs").querySelector("button")?.focus();
  });
}

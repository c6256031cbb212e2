// The second view: which bundle answers, what was measured of its run, and the plots of its report.
import * as api from "./api.js";
import { el, number } from "./dom.js";

const $ = (id) => document.getElementById(id);
const NAMES = {
  auc: "AUC", uauc: "UAUC", uauc_null: "UAUC null", snapshot_accuracy: "Snapshot", ece: "ECE",
  "ndcg@5": "NDCG@5", "map@5": "MAP@5",
};
const HEADLINE = ["auc", "uauc", "uauc_null", "ndcg@5", "map@5", "snapshot_accuracy", "ece"];
const whole = new Intl.NumberFormat("en");
const day = (seconds) => new Date(1000 * seconds).toISOString().slice(0, 10);

function say(text, kind = "", retry = null) {
  $("status").className = `status ${kind}`;
  $("status").replaceChildren(text);
  if (retry) $("status").append(el("button", { type: "button", onclick: retry }, "Try again"));
}

async function show() {
  say("Asking what is served …");
  try {
    const served = await api.run();
    $("door").hidden = true;
    $("view").replaceChildren(...parts(served));
    say("");
  } catch (error) {
    $("view").replaceChildren();
    say(error.message, "error", show);
    $("door").hidden = error.status !== 401;
  }
}

const parts = ({ versions, cut, report }) => [
  facts("What answers", { bundle: versions.bundle, ...versions, "data until": day(cut), ...(report && about(report)) }),
  ...(report ? measured(report) : [
    el("p", {}, "This bundle was published without a report, or with one that this version cannot read, so only its versions are known. Publish its run again to see more."),
  ]),
];

function about({ run, data }) {
  const counts = data && { data: `${data.source}: ${whole.format(data.users)} users, ${whole.format(data.items)} items, ${whole.format(data.interactions)} interactions` };
  return { run: run.name, made: run.created.replace("T", " ").replace("+00:00", " UTC"), ...counts, ...run.settings };
}

const facts = (title, values) => section(title,
  el("dl", { class: "facts" }, Object.entries(values).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])));

const section = (title, ...children) => el("section", {}, el("h2", {}, title), ...children);

function measured({ champion, exposed, catalogue, calibration, stages, plots }) {
  const drawn = (...sections) => figures(plots.filter((plot) => sections.includes(plot.section)));
  return [
    exposed && section("How good it is", note(champion),
      scorers(exposed, champion, "Scorers on the same test rows"), drawn("exposed")),
    catalogue && section("Among all items",
      el("p", { class: "quiet" }, "Each user's liked test items, ranked among every item that the user has not rated."),
      scorers(catalogue, champion, "Scorers ranking all items"), drawn("catalogue")),
    calibration && section("Whether P(yes) can be believed", believed(calibration), drawn("calibration")),
    plots.some((plot) => plot.section === "curves") && section("How it learned", drawn("curves")),
    stages && section("What it cost", costs(stages), drawn("stages")),
    section("More", el("p", {}, link())),
  ].filter(Boolean);
}

const note = (champion) => el("p", { class: "quiet" },
  `What is served is ${champion}; the others are its rivals. AUC: how often a liked row is scored above a disliked one. `
  + "UAUC: the same within each user, beside what chance gives there. Snapshot: among items rated at one moment. "
  + "ECE: how far P(yes) is off. Below each value its 95 % interval.");

function believed({ rows, ece, brier, brier_constant: constant }) {
  if (ece === null) return el("p", {}, "Not measured.");
  const against = brier === null ? "" : ` Its Brier score is ${number(brier)}; always answering the base rate gives ${number(constant)}.`;
  return el("p", {}, `On ${whole.format(rows)} test rows it is off by ${(100 * ece).toFixed(1)} points on average.${against}`);
}

function scorers({ scorers: rows }, champion, label) {
  const present = [...new Set(Object.values(rows).flatMap((row) => Object.keys(row)))];
  const some = HEADLINE.filter((name) => present.includes(name));
  const columns = some.length ? some : present;
  const score = ([, row]) => row[columns[0]]?.value ?? -Infinity;
  return table(label, ["Scorer", ...columns.map((name) => NAMES[name] ?? name.replaceAll("_", " "))],
    Object.entries(rows).sort((one, other) => score(other) - score(one)).map(([name, row]) => ({
      name, marked: name === champion, cells: columns.map((column) => value(row[column])),
    })));
}

const value = (one) => !one || one.value === null ? ["–"] : [
  number(one.value), one.low === null || one.high === null ? null : el("small", {}, `${number(one.low)} – ${number(one.high)}`),
];

const costs = (stages) => table("Stages of the run", ["Stage", "Seconds", "CPU seconds", "Peak memory, MB"],
  stages.map((stage) => ({
    name: stage.stage,
    cells: [stage.seconds, stage.cpu_seconds, stage.peak_memory_mb].map((cost) => [whole.format(Math.round(cost))]),
  })));

function table(label, head, rows) {
  return el("div", { class: "wide", role: "region", "aria-label": label, tabindex: "0" },
    el("table", {}, el("caption", { class: "hidden" }, label),
      el("thead", {}, el("tr", {}, head.map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, rows.map(({ name, marked, cells }) => el("tr", { class: marked ? "marked" : undefined },
        el("th", { scope: "row" }, name, marked ? el("span", { class: "hidden" }, " (served)") : null),
        cells.map((cell) => el("td", {}, ...cell)))))));
}

// Plots come through fetch, which can send an API key where an image cannot.
function figures(plots) {
  return el("div", { class: "plots" }, plots.map(({ name, caption }) => {
    const image = el("img", { alt: `Plot: ${caption}` });
    const shown = el("figure", {}, el("figcaption", { class: "quiet" }, caption), image);
    api.file(`/v1/run/plots/${encodeURIComponent(name)}`).then(
      (url) => { image.onload = () => URL.revokeObjectURL(url); image.src = url; },
      (error) => image.replaceWith(el("p", { class: "no" }, error.message)));
    return shown;
  }));
}

function link() {
  const path = "/v1/run/report";
  const save = async (event) => {
    if (!api.hasKey()) return;
    event.preventDefault(); // a link cannot send the key: the report is fetched, and kept as a file
    try {
      el("a", { href: await api.file(path), download: "report.html" }).click();
    } catch (error) {
      say(error.message, "error");
    }
  };
  return el("a", { href: path, onclick: save }, "The whole report of the run");
}

$("door").addEventListener("submit", (event) => {
  event.preventDefault();
  api.setKey($("key").value.trim());
  $("key").value = "";
  show();
});
show();

// One recommended item: odds, reasons with their evidence, the doubts, and what the person thinks of it.
import { el, percent, plural } from "./dom.js";

const CAUSES = {
  low_confidence: "its confidence was low",
  conflict: "similar users and the user's own taste disagree",
  high_stakes: "the stakes are high",
  inconsistent: "its reasons did not lead to it",
};

export function card(entry, rank, feedback) {
  const { item, explanation, evidence, reflection, verdict, score, confidence } = entry;
  const likes = score >= 0.5;
  return el("article", { class: "card", "aria-label": item.title },
    el("header", {},
      el("h3", {}, `${rank ? `${rank}. ` : ""}${titled(item)}`),
      el("p", { class: "quiet genres" }, item.features.join(" · ")),
      el("div", { class: `odds ${likes ? "yes" : "no"}` },
        el("b", {}, percent(score)), el("span", { class: "quiet" }, `confidence ${percent(confidence)}`))),
    bar(score, likes),
    reasons(explanation.sentences, evidence),
    explanation.counterfactual
      ? el("div", { class: "hangs" }, withChips(explanation.counterfactual.text, explanation.counterfactual.evidence, evidence))
      : null,
    explanation.rewritten
      ? el("p", { class: "quiet" }, `${plural(explanation.rewritten, "sentence")} written from the evidence, not by the student`)
      : null,
    explanation.coherent ? null : el("p", { class: "quiet no" }, "These reasons do not fully lead to the decision."),
    reflection && doubts(reflection, evidence),
    el("details", { open: explanation.detail === "detailed" },
      el("summary", {}, `Evidence (${evidence.length})`),
      el("ul", {}, evidence.map((one) => el("li", {}, el("span", { class: one.sign > 0 ? "yes" : "no" }, `${one.id} `), fact(one))))),
    el("div", { class: "acts" },
      el("button", { type: "button", onclick: (event) => feedback(item, 1, event.target) }, "Liked it"),
      el("button", { type: "button", onclick: (event) => feedback(item, 0, event.target) }, "Not for me"),
      el("span", { class: "quiet" }, `decided by ${verdict.expert}`)));
}

export const titled = (item) =>
  item.year && !item.title.includes(`(${item.year})`) ? `${item.title} (${item.year})` : item.title;

export function fact(one) {
  const ratings = plural(one.support, "rating");
  const average = one.rating === null ? "" : ` average ${one.rating.toFixed(1)} from`;
  const head = {
    history: `“${one.title}”: ${one.sign > 0 ? "liked" : "not liked"}${one.rating === null ? "" : `, rated ${one.rating}`}`,
    neighbour: `“${one.title}”: similar users'${average} ${ratings}`,
    peers: `Similar users on this item:${average} ${ratings}`,
    crowd: `Everyone on this item: ${percent(one.rating ?? 0)} of ${ratings} positive`,
  }[one.kind];
  return one.shared.length ? `${head}; shares ${one.shared.join(", ")}` : head;
}

function bar(score, likes) {
  const fill = el("i");
  fill.style.setProperty("--p", percent(score).replace(" ", ""));
  return el("div", { class: `bar${likes ? "" : " against"}`, role: "img", "aria-label": `P(yes) ${percent(score)}` }, fill);
}

function reasons(sentences, evidence) {
  return el("div", { class: "reasons" }, sentences.map((sentence) => withChips(sentence.text, sentence.citations, evidence)));
}

// A sentence and a chip per citation; a chip shows its fact below the sentence.
function withChips(text, ids, evidence) {
  const line = el("p", { class: "reason" }, text);
  const shown = el("div", { class: "fact", hidden: "" });
  const chips = ids.map((id) => evidence.find((one) => one.id === id)).filter(Boolean).map((one) => {
    const chip = el("button", { type: "button", class: `chip ${one.sign > 0 ? "" : "no"}`, title: fact(one),
                                "aria-expanded": "false", "aria-label": `Evidence ${one.id}` }, one.id);
    chip.addEventListener("click", () => {
      const opens = chip.getAttribute("aria-expanded") === "false";
      chips.forEach((other) => other.setAttribute("aria-expanded", "false"));
      chip.setAttribute("aria-expanded", String(opens));
      shown.className = `fact ${one.sign > 0 ? "" : "no"}`;
      shown.textContent = fact(one);
      shown.hidden = !opens;
    });
    return chip;
  });
  line.append(...chips);
  return el("div", {}, line, shown);
}

function doubts(reflection, evidence) {
  const causes = reflection.triggers.map((name) => CAUSES[name] ?? name).join("; ");
  const moved = `${percent(reflection.before)} → ${percent(reflection.after)}`;
  return el("details", { class: "doubts" },
    el("summary", {}, `Doubted, since ${causes}: ${moved}`),
    el("dl", {}, Object.entries(reflection.questions).flatMap(([question, answer]) => {
      const ids = [...new Set([...answer.matchAll(/\[(e\d+)\]/g)].map((found) => found[1]))];
      return [el("dt", {}, question), el("dd", {}, withChips(answer.replaceAll(/\[(e\d+)\]/g, "$1"), ids, evidence))];
    })));
}

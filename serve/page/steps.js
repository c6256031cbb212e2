// The agents' steps while they are at work, as a list that a screen reader is not flooded with.
import { el, plural } from "./dom.js";

const WORK = {
  fetch: "reads the history",
  propose: "looks for similar users and candidates",
  assemble: "looks up what is known of every candidate",
  decide: "decides about every candidate",
  gather: "gathers the evidence for the best",
  write: "writes the reasons",
  triggers: "looks for causes to doubt",
  reconsider: "decides again without parts of the evidence",
  synthesise: "weighs the second looks",
  present: "checks every sentence against its evidence",
  without: "leaves out the ratings that reasons cite",
  rethink: "decides once more without them",
  estimate: "stands in for the student",
};
const FACTS = {
  ratings: (n) => plural(n, "rating"),
  candidates: (n) => plural(n, "candidate"),
  similar_users: (n) => plural(n, "similar user"),
  evidence: (n) => plural(n, "fact"),
  items: (n) => plural(n, "item"),
  doubted: (n) => (n ? `${n} in doubt` : "none"),
  turned: (n) => (n ? `${n} turned` : "none turned"),
  rewritten: (n) => (n ? `${n} rewritten` : "all as written"),
};

// A function that takes each step and shows it in `list`.
export function steps(list) {
  const rows = new Map();
  list.replaceChildren();
  return ({ number, agent, work, ms, facts }) => {
    if (!rows.has(number)) {
      rows.set(number, el("li", {}));
      list.append(rows.get(number));
    }
    const told = Object.entries(facts).filter(([name]) => FACTS[name]).map(([name, value]) => FACTS[name](value));
    const row = rows.get(number);
    row.className = ms === null ? "working" : "";
    row.replaceChildren(
      el("b", {}, agent), el("span", {}, ` ${WORK[work] ?? work}`),
      el("span", { class: "quiet" }, ms === null ? "…" : [...told, `${Math.round(ms)} ms`].join(", ")));
  };
}

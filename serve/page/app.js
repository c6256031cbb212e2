// The page: choose a user, see the history, the recommendations and why, and answer back.
import * as api from "./api.js";
import { card, titled } from "./card.js";
import { combo } from "./combo.js";
import { el, percent, plural } from "./dom.js";

const $ = (id) => document.getElementById(id);
let current = null;
let asked = new AbortController();

function say(text, kind = "", retry = null, where = $("status")) {
  where.className = `status ${kind}`;
  where.replaceChildren(...(text ? [text] : []));
  if (retry) where.append(el("button", { type: "button", onclick: retry }, "Try again"));
}

async function show(userId) {
  current = userId;
  history.replaceState(null, "", `#${encodeURIComponent(userId)}`);
  $("user").value = userId;
  asked.abort();
  asked = new AbortController();
  const { signal } = asked;
  const settings = { k: $("k").valueAsNumber || 5, detail: $("detail").value, high_stakes: $("stakes").checked };
  say("Five agents are at work …");
  $("cards").classList.add("busy");
  $("why-card").replaceChildren();
  try {
    const [profile, answer] = await Promise.all([
      api.user(userId, signal),
      api.recommend({ user_id: userId, ...settings }, signal),
    ]);
    showHistory(profile);
    showAnswer(answer);
  } catch (error) {
    if (error.name === "AbortError") return;
    say(error.message, "error", () => show(userId));
    $("cards").replaceChildren();
    for (const id of ["timings", "history", "why"]) $(id).hidden = true;
  }
  $("cards").classList.remove("busy");
}

function showHistory({ user, like_rate, count, history: events }) {
  const facts = Object.entries(user.profile).map(([name, value]) => `${name.replaceAll("_", " ")} ${value}`);
  $("profile").textContent = [`${plural(count, "rating")}, likes ${percent(like_rate)}`, ...facts].join(" · ");
  $("events").replaceChildren(...events.map(({ item, rating, label }) =>
    el("li", {},
      el("span", {}, titled(item)),
      el("span", { class: `rating ${label ? "yes" : "no"}`, title: label ? "liked" : "not liked" },
        rating === null ? (label ? "liked" : "no") : `${rating} ★`),
      el("span", { class: "quiet genres" }, item.features.join(" · ")))));
  $("history").hidden = false;
}

function showAnswer(answer) {
  if (answer.degraded) say(`Not the full answer: ${answer.degraded_reason}.`, "degraded");
  else say(answer.items.length ? "" : "There is nothing left to recommend to this user.");
  $("cards").replaceChildren(...answer.items.map((entry, at) => card(entry, at + 1, feedback)));
  const times = Object.entries(answer.timings_ms).map(([agent, ms]) => `${agent} ${Math.round(ms)} ms`);
  $("timings").textContent = [...times, `bundle ${answer.versions.bundle}`].join(" · ");
  $("timings").hidden = false;
  $("why").hidden = false;
}

async function feedback(item, label, button) {
  const both = button.parentElement.querySelectorAll("button");
  both.forEach((one) => { one.disabled = true; });
  const key = [...crypto.getRandomValues(new Uint32Array(4))].map((n) => n.toString(16)).join("");
  try {
    await api.interact({ user_id: current, item_id: item.item_id, label, event: "page" }, key);
    await show(current);
    if (!$("status").textContent) say(`Noted: ${label ? "liked" : "not for me"}, ${item.title}.`);
  } catch (error) {
    both.forEach((one) => { one.disabled = false; });
    say(error.message, "error");
  }
}

async function why(itemId) {
  say("Looking into it …", "", null, $("why-status"));
  try {
    const body = { user_id: current, item_id: itemId, detail: $("detail").value, high_stakes: $("stakes").checked };
    const answer = await api.explain(body);
    $("why-card").replaceChildren(...answer.items.map((entry) => card(entry, 0, feedback)));
    say(answer.degraded ? `Not the full answer: ${answer.degraded_reason}.` : "", "degraded", null, $("why-status"));
  } catch (error) {
    say(error.message, "error", () => why(itemId), $("why-status"));
  }
}

combo($("user"), $("users"),
  async (text, signal) => (await api.users(text, signal)).users.map(({ user_id, history: count }) =>
    ({ value: user_id, label: user_id, hint: plural(count, "rating") })),
  ({ value }) => show(value));
combo($("item"), $("items"),
  async (text, signal) => (await api.items(text, signal)).items.map((item) =>
    ({ value: item.item_id, label: titled(item), hint: item.features.join(" · ") })),
  ({ value }) => why(value));

$("chooser").addEventListener("submit", (event) => {
  event.preventDefault();
  const userId = $("user").value.trim();
  if (userId) show(userId);
});
$("why").addEventListener("submit", (event) => event.preventDefault());
const wanted = decodeURIComponent(location.hash.slice(1));
if (wanted) show(wanted);

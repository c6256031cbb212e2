// The page: choose a user, see the history, the recommendations and why, and answer back.
import * as api from "./api.js";
import { card, titled } from "./card.js";
import { combo } from "./combo.js";
import { el, percent, plural } from "./dom.js";
import { steps } from "./steps.js";

const $ = (id) => document.getElementById(id);
const picks = new Map(); // item id -> { item, label }: the opinions of somebody without an account
let current = null;
let asked = new AbortController();

function say(text, kind = "", retry = null, where = $("status")) {
  where.className = `status ${kind}`;
  where.replaceChildren(...(text ? [text] : []));
  if (retry) where.append(el("button", { type: "button", onclick: retry }, "Try again"));
}

const isGuest = () => document.querySelector("input[name=mode]:checked").value === "guest";
const liking = (label) => [...picks].filter(([, pick]) => pick.label === label).map(([id]) => id);
const who = () => (isGuest() ? { liked: liking(1), disliked: liking(0) } : { user_id: current });
const settings = () => ({ detail: $("detail").value, high_stakes: $("stakes").checked });

function show(userId) {
  current = userId;
  $("user").value = userId;
  history.replaceState(null, "", `#${encodeURIComponent(userId)}`);
  return refresh();
}

// Ask for what is chosen now; a question that is still at work is given up.
async function refresh() {
  asked.abort();
  asked = new AbortController();
  const { signal } = asked;
  say("Five agents are at work …");
  $("cards").classList.add("busy");
  $("steps").hidden = false;
  $("why-card").replaceChildren();
  try {
    const body = { ...who(), ...settings(), k: $("k").valueAsNumber || 5 };
    const [profile, answer] = await Promise.all([
      isGuest() ? null : api.user(current, signal),
      api.recommend(body, signal, steps($("steps"))),
    ]);
    if (profile) showHistory(profile);
    $("history").hidden = !profile;
    showAnswer(answer);
  } catch (error) {
    if (error.name === "AbortError") return;
    say(error.message, "error", refresh);
    $("door").hidden = error.status !== 401;
    $("cards").replaceChildren();
    for (const id of ["timings", "history", "why"]) $(id).hidden = true;
  }
  $("steps").hidden = true;
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
  else if (!answer.items.length) say("There is nothing left to recommend to this user.");
  else say(answer.items.some((entry) => entry.score >= 0.5) ? "" : "None of these is likely to please. They come closest.");
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
    if (isGuest()) pick(item, label);
    else await api.interact({ user_id: current, item_id: item.item_id, label, event: "page" }, key);
    await refresh();
    if (!$("status").textContent) say(`Noted: ${label ? "liked" : "not for me"}, ${item.title}.`);
  } catch (error) {
    both.forEach((one) => { one.disabled = false; });
    say(error.message, "error");
  }
}

function pick(item, label) {
  picks.set(item.item_id, { item, label });
  $("picks").replaceChildren(...[...picks].map(([id, { item: known, label: liked }]) =>
    el("li", {},
      el("span", {}, titled(known)),
      el("button", { type: "button", class: liked ? "yes" : "no", "aria-label": `${liked ? "Liked" : "Not liked"}: ${known.title}. Change`,
                     onclick: () => pick(known, liked ? 0 : 1) }, liked ? "liked" : "not for me"),
      el("button", { type: "button", "aria-label": `Remove ${known.title}`,
                     onclick: ({ target }) => { picks.delete(id); target.closest("li").remove(); } }, "×"))));
}

async function why(itemId) {
  const { signal } = asked;
  say("Looking into it …", "", null, $("why-status"));
  try {
    const answer = await api.explain({ ...who(), ...settings(), item_id: itemId }, signal, () => {});
    $("why-card").replaceChildren(...answer.items.map((entry) => card(entry, 0, feedback)));
    say(answer.degraded ? `Not the full answer: ${answer.degraded_reason}.` : "", "degraded", null, $("why-status"));
  } catch (error) {
    if (error.name !== "AbortError") say(error.message, "error", () => why(itemId), $("why-status"));
  }
}

combo($("user"), $("users"),
  async (text, signal) => (await api.users(text, signal)).users.map(({ user_id, history: count }) =>
    ({ value: user_id, label: user_id, hint: plural(count, "rating") })),
  ({ value }) => show(value));
const titles = async (text, signal) => (await api.items(text, signal)).items.map((item) =>
  ({ item, value: item.item_id, label: titled(item), hint: item.features.join(" · ") }));
combo($("item"), $("items"), titles,
  ({ value }) => why(value));
combo($("pick"), $("found"), titles, ({ item }) => { pick(item, 1); $("pick").value = ""; });

document.querySelectorAll("input[name=mode]").forEach((one) => one.addEventListener("change", () => {
  $("guest").hidden = !isGuest();
  $("known").hidden = isGuest();
  $("history").hidden = isGuest() || !$("events").children.length;
}));
$("chooser").addEventListener("submit", (event) => {
  event.preventDefault();
  const userId = $("user").value.trim();
  if (isGuest()) {
    if (!picks.size) return say("Pick a title or two that you know, then ask.");
    history.replaceState(null, "", location.pathname);
    return refresh();
  }
  if (userId) show(userId);
});
$("door").addEventListener("submit", (event) => {
  event.preventDefault();
  api.setKey($("key").value.trim());
  $("key").value = "";
  $("door").hidden = true;
  if (current || isGuest()) refresh();
});
$("why").addEventListener("submit", (event) => event.preventDefault());
const wanted = decodeURIComponent(location.hash.slice(1));
if (wanted) show(wanted);

// The service's API: JSON in and out, problem+json as an Error whose message is for a person. Answers come
// as server-sent events, one a step of the agents. An API key, where one is needed, lasts as long as the tab.

const KEY = "rationale-key";
export const setKey = (key) => sessionStorage.setItem(KEY, key);
export const hasKey = () => sessionStorage.getItem(KEY) !== null;

async function ask(path, { body, headers, signal } = {}) {
  const key = sessionStorage.getItem(KEY);
  let answer;
  try {
    answer = await fetch(path, {
      method: body ? "POST" : "GET",
      headers: {
        ...(body && { "Content-Type": "application/json" }),
        ...(key && { Authorization: `Bearer ${key}` }),
        ...headers,
      },
      body: body && JSON.stringify(body),
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The service cannot be reached.");
  }
  if (answer.ok) return answer;
  throw failure(await answer.json().catch(() => ({})), answer.status);
}

function failure(problem, status) {
  const error = new Error(problem.detail ?? `The service answered ${status}.`);
  error.status = status;
  return error;
}

const call = async (path, options) => (await ask(path, options)).json();

// The answer; `onStep` is told every step when it begins (ms is null) and when it is done.
async function stream(path, body, signal, onStep) {
  const answer = await ask(path, { body, signal, headers: { Accept: "text/event-stream" } });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error("The answer broke off. Ask again.");
    const events = (text + value).split("\n\n");
    text = events.pop();
    for (const one of events) {
      const found = /^event: (\w+)\ndata: (.*)$/.exec(one);
      if (!found) continue;
      const data = JSON.parse(found[2]);
      if (found[1] === "answer") return data;
      if (found[1] === "problem") throw failure(data, data.status);
      onStep(data);
    }
  }
}

const query = (values) => new URLSearchParams(values).toString();

export const run = () => call("/v1/run");
// The address of a file of the run, as fetched.
export const file = async (path) => URL.createObjectURL(await (await ask(path)).blob());
export const users = (prefix, signal) => call(`/v1/users?${query({ limit: 20, prefix })}`, { signal });
export const items = (q, signal) => call(`/v1/items?${query({ limit: 20, q })}`, { signal });
export const user = (id, signal) => call(`/v1/users/${encodeURIComponent(id)}?limit=50`, { signal });
export const recommend = (body, signal, onStep) => stream("/v1/recommendations", body, signal, onStep);
export const explain = (body, signal, onStep) => stream("/v1/explanations", body, signal, onStep);
export const interact = (body, key) => call("/v1/interactions", { body, headers: { "Idempotency-Key": key } });

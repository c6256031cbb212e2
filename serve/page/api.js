// The service's API: JSON in and out, problem+json as an Error whose message is for a person.

async function call(path, { body, headers, signal } = {}) {
  let answer;
  try {
    answer = await fetch(path, {
      method: body ? "POST" : "GET",
      headers: body ? { "Content-Type": "application/json", ...headers } : headers,
      body: body && JSON.stringify(body),
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The service cannot be reached.");
  }
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(content.detail ?? `The service answered ${answer.status}.`);
  return content;
}

const query = (values) => new URLSearchParams(values).toString();

export const users = (prefix, signal) => call(`/v1/users?${query({ limit: 20, prefix })}`, { signal });
export const items = (q, signal) => call(`/v1/items?${query({ limit: 20, q })}`, { signal });
export const user = (id, signal) => call(`/v1/users/${encodeURIComponent(id)}?limit=50`, { signal });
export const recommend = (body, signal) => call("/v1/recommendations", { body, signal });
export const explain = (body, signal) => call("/v1/explanations", { body, signal });
export const interact = (body, key) => call("/v1/interactions", { body, headers: { "Idempotency-Key": key } });

// What the page asks of the server.

const KEY = "mmrt.key";
const WAIT = 1000; // milliseconds between two looks whether the models are open

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export class Server {
  // askKey: called where the server wants a key, or another one than it was given; promises a
  // key, or null where the reader gives none.
  constructor(askKey) {
    this.askKey = askKey;
    this.asking = null;
  }

  // What /sight tells, once the models are open. waiting: called while they are not.
  async sight(waiting = () => {}) {
    for (;;) {
      try {
        return await (await this.#ask("sight")).json();
      } catch (error) {
        if (error.status !== 503) throw error;
        waiting(error.message);
        await new Promise((done) => setTimeout(done, WAIT));
      }
    }
  }

  // The chunks of a chat's answer, as they come.
  async *chat(body, signal) {
    const response = await this.#ask("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
      signal,
    });
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Refused(200, chunk.error.message);
      yield chunk;
    }
    throw new Refused(200, "the connection ended before the answer did");
  }

  async #ask(path, options = {}) {
    for (;;) {
      const key = sessionStorage.getItem(KEY);
      const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
      const response = await fetch(path, { ...options, headers });
      if (response.ok) return response;
      if (response.status !== 401) throw await refused(response);
      await this.#newKey(key);
    }
  }

  // Asks once, however many requests want a key. old: the one that was refused.
  async #newKey(old) {
    if (sessionStorage.getItem(KEY) !== old) return;
    this.asking ??= this.askKey(old !== null);
    const key = await this.asking;
    this.asking = null;
    if (key === null) throw new Refused(401, "this server wants a key");
    sessionStorage.setItem(KEY, key);
  }
}

async function refused(response) {
  let message = `the server says ${response.status}`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // it is no JSON: a proxy's own words
  }
  const after = response.headers.get("Retry-After");
  return new Refused(response.status, after ? `${message} (try again in ${after} s)` : message);
}

// The data of server-sent events.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const data = block.split("\n").filter((line) => line.startsWith("data: "));
        if (data.length) yield data.map((line) => line.slice(6)).join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

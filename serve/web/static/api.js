// Client of the public HTTP API. The key lives in this object only.

const ROOT = new URL("../", import.meta.url);

export class ApiError extends Error {
  constructor(status, code, message) {
    super(message);
    Object.assign(this, { status, code });
  }
}

export class ApiClient {
  key = "";

  async request(method, path, { form, signal } = {}) {
    const headers = this.key ? { Authorization: `Bearer ${this.key}` } : {};
    // A repeated attempt of the same submission must not create a second object.
    if (method === "POST") headers["Idempotency-Key"] = randomId();
    let response;
    try {
      response = await fetch(new URL(path, ROOT), { method, headers, body: form, signal });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new ApiError(0, "unreachable", "The service cannot be reached; try again in a moment.");
    }
    if (!response.ok) throw await errorOf(response);
    return response;
  }

  async json(method, path, options) {
    return (await this.request(method, path, options)).json();
  }

  async objectUrl(path, options) {
    return URL.createObjectURL(await (await this.request("GET", path, options)).blob());
  }

  // Server-sent events of a video as [name, data] pairs. EventSource cannot send a key.
  async *events(videoId, signal) {
    const response = await this.request("GET", `v1/videos/${videoId}/events`, { signal });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let buffer = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      buffer += value;
      const blocks = buffer.split("\n\n");
      buffer = blocks.pop();
      for (const block of blocks) {
        const fields = Object.fromEntries(
          block.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)])
        );
        if (fields.event) yield [fields.event, JSON.parse(fields.data)];
      }
    }
  }
}

async function errorOf(response) {
  try {
    const { code, message } = (await response.json()).error;
    return new ApiError(response.status, code, message);
  } catch {
    return new ApiError(response.status, "internal_error", `The service answered with status ${response.status}.`);
  }
}

function randomId() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

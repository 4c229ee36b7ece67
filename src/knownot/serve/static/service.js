// What the page asks the service, and what a refusal means. Addresses are relative: a proxy may show
// the service under a path of its own.

/** A refusal, with the word the service uses for it. */
export class Refusal extends Error {
  constructor(code, details = {}) {
    super(code);
    this.code = code;
    this.details = details;
  }
}

let key = null;
let limits = null;

export function useKey(value) {
  key = value;
}

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (!/^[ -~]*$/.test(key ?? "")) throw new Refusal("wrong_key"); // no header holds others
  if (key !== null) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    throw new Refusal(error.name === "TimeoutError" ? "too_slow" : "network");
  }
  if (response.ok) return response;
  // Not every error is of the service: a proxy has its own, in HTML.
  const { error } = await response.json().catch(() => ({}));
  const byStatus = { 413: "upload_too_large", 429: "queue_full", 503: "busy" };
  const code = error === "no_photo" ? "unreadable_photo" : error; // an empty file
  throw new Refusal(code ?? byStatus[response.status] ?? "other", {
    status: response.status,
    wait: response.headers.get("Retry-After") ?? "1",
  });
}

/** The body of an answer; one that is cut off, or is a proxy's page, is as good as none. */
function body(reading) {
  return reading.catch(() => {
    throw new Refusal("network");
  });
}

export async function describe() {
  const model = await body((await ask("model")).json());
  limits = model.limits;
  return model;
}

export async function sample(index) {
  return body((await ask(`samples/${index}`)).blob());
}

/** A thumbnail, by the address that an answer gives it. */
export async function thumbnail(address) {
  return body((await ask(address)).blob());
}

/** The answer for one photo, a Blob; with the score and alpha that decided. */
export async function predict(photo) {
  // A body that is refused half-way breaks the connection before the browser has read why.
  if (limits !== null && photo.size > limits.upload_bytes) throw new Refusal("upload_too_large");
  const type = photo.type.startsWith("image/") ? photo.type : "application/octet-stream";
  const patience = limits === null ? 60 : 2 * limits.seconds;
  const response = await ask("predict", {
    method: "POST",
    body: photo,
    headers: { "Content-Type": type },
    signal: AbortSignal.timeout(1000 * patience),
  });
  const { photos, ...settings } = await body(response.json());
  return { ...photos[0], ...settings };
}

/** What the sentence about a refusal may name. */
export function namedIn(refusal) {
  return {
    ...refusal.details,
    mebibytes: limits && +(limits.upload_bytes / 2 ** 20).toPrecision(2),
    megapixels: limits && +(limits.photo_pixels / 1e6).toPrecision(2),
    formats: limits && limits.formats.map((name) => name.toUpperCase()).join(", "),
  };
}

// The answers of this session: kept by the page alone, shown as cards, downloaded as a file.

import { texts } from "./texts.js";

const MOST = 200; // the photos stay in the browser's memory
const COLUMNS = [
  "time", "name", "label", "is_unknown", "ood_score", "p_value", "nearest_class", "confidence",
  "score", "alpha", "x1", "y1", "x2", "y2", "error",
];

const section = document.querySelector("#history");
const list = section.querySelector(".cards");
let entries = [];

/** Add one at the front; the oldest goes when there are too many. */
export function remember(entry) {
  entries.unshift(entry);
  for (const old of entries.splice(MOST)) URL.revokeObjectURL(old.url);
}

export function forget() {
  for (const entry of entries) URL.revokeObjectURL(entry.url);
  entries = [];
}

/** Draw the cards; `summary` gives [text, is_unknown] of an entry, `open` is called on choice. */
export function drawSession(current, summary, open) {
  section.hidden = entries.length === 0;
  list.replaceChildren(
    ...entries.map((entry) => {
      const [text, unknown] = summary(entry);
      const card = document.createElement("button");
      card.type = "button";
      card.className = entry.answer === null ? "card failed" : unknown ? "card unknown" : "card";
      card.setAttribute("aria-label", texts().said(entry.name, text));
      if (entry === current) card.setAttribute("aria-current", "true");
      const picture = document.createElement("img");
      picture.src = entry.url;
      picture.alt = "";
      picture.onerror = () => picture.remove(); // the browser does not show every photo
      const label = document.createElement("span");
      label.textContent = text;
      card.append(picture, label);
      card.onclick = () => open(entry);
      const item = document.createElement("li");
      item.append(card);
      return item;
    }),
  );
}

/** Everything that was asked, oldest first, with the model that answered. */
export function asJson(model) {
  const { classes, alpha, threshold, default_score, versions } = model ?? {};
  const answers = [...entries]
    .reverse()
    .map(({ time, name, answer, error }) => ({ time, ...answer, name, ...told(error) }));
  return JSON.stringify({ model: { classes, alpha, threshold, default_score, versions }, answers }, null, 2);
}

/** One row for each photo, or for each object of a detector's. */
export function asCsv() {
  const rows = [...entries].reverse().flatMap(({ time, name, answer, error }) => {
    if (answer === null) return [{ time, name, ...told(error) }];
    const photo = { time, name, score: answer.score, alpha: answer.alpha };
    if (answer.boxes === null) {
      return [{ ...answer, ...photo, nearest_class: answer.nearest[0]?.label }];
    }
    if (!answer.boxes.length) return [photo];
    return answer.boxes.map((box) => {
      const [x1, y1, x2, y2] = box.box;
      return { ...box, ...photo, x1, y1, x2, y2 };
    });
  });
  return [COLUMNS, ...rows.map((row) => COLUMNS.map((name) => row[name]))]
    .map((cells) => cells.map(cell).join(",") + "\r\n")
    .join("");
}

/** What the service said of a photo that it did not answer for. */
const told = (error) => (error ? { error: error.code } : {});

function cell(value) {
  const text = String(value ?? "");
  // A file's name that begins like a formula would be one in a spreadsheet.
  const safe = typeof value === "string" && /^[=+\-@]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

export function download(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

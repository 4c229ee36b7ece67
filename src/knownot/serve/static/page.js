// Photos in, answers out: joins what the other files offer.

import { boxLabel, boxNumbers, colourOf, drawBoxes } from "./boxes.js";
import { hasCamera, photograph } from "./camera.js";
import { drawHistogram } from "./histogram.js";
import { Refusal, describe, namedIn, predict, sample, useKey } from "./service.js";
import { asCsv, asJson, download, drawSession, forget, remember } from "./session.js";
import { drawSimilar } from "./similar.js";
import { language, percent, speak, texts } from "./texts.js";

const MOST_CLASSES = 24;
const $ = (selector) => document.querySelector(selector);
const photo = $("#photo");

let model = null;
let shown = null; // {name, url, answer} on the stage; the answer is null until it is there
let problem = null; // the Refusal that is shown
let asking = false;
let chosenBox = null;
let queue = Promise.resolve();

// Asking

function ask(photos) {
  let failed = null; // of these photos: what went wrong with one stays to be read beside the others
  for (const [blob, name] of photos) {
    queue = queue.catch(() => {}).then(async () => {
      await askOne(blob, name, failed);
      failed = problem;
    });
  }
}

async function askOne(blob, name, failed) {
  const entry = { name, url: URL.createObjectURL(blob), answer: null, time: new Date().toISOString() };
  show(entry);
  problem = failed;
  asking = true;
  draw();
  try {
    entry.answer = await predict(blob);
    remember(entry);
    if (shown === entry) chosenBox = firstOfInterest(entry.answer.boxes);
  } catch (error) {
    fail(error, name);
    entry.error = error.code === "wrong_key" ? null : problem;
    if (entry.error !== null) remember(entry);
  } finally {
    asking = false;
    draw();
  }
  $("#drop").scrollIntoView({ block: "nearest" });
}

/** The box to begin with: the strangest unknown one, else the first. */
function firstOfInterest(boxes) {
  if (!boxes?.length) return null;
  const strange = boxes.findIndex((box) => box.is_unknown);
  return Math.max(strange, 0);
}

function fail(error, name = null) {
  if (!(error instanceof Refusal)) throw error;
  const first = error.code === "wrong_key" && $("#key").hidden;
  problem = first ? null : error; // the form says it
  if (problem !== null) problem.photo = name;
  if (error.code === "wrong_key") $("#key").hidden = false;
}

function show(entry) {
  problem = entry.error ?? null;
  chosenBox = firstOfInterest(entry.answer?.boxes);
  shown = entry;
  $("#unshown").hidden = true;
  $("#stage").hidden = false;
  $("#drop").classList.remove("empty");
  photo.src = entry.url;
  photo.alt = entry.name;
}

// Drawing; everything can be drawn again at any time, in another language or at another width.

function draw() {
  const answer = shown?.answer ?? null;
  $("#drop").classList.toggle("busy", asking);
  $("#problem").hidden = problem === null;
  if (problem !== null) {
    const text = problemText(problem);
    const another = problem.photo && problem.photo !== shown?.name;
    $("#problem").textContent = another ? `${problem.photo}: ${text}` : text;
  }
  $("#waiting").hidden = answer !== null || problem !== null || asking;
  $("#result").hidden = answer === null;
  $("#answer").classList.toggle("unknown", answer !== null && summary(answer)[1]);
  $("#status").textContent = asking ? texts().asking : "";
  if (answer !== null) drawAnswer(answer);
  drawOverlay();
  drawModel();
  drawSession(shown, entrySummary, (entry) => {
    show(entry);
    draw();
    $("#answer").focus();
  });
}

function drawAnswer(answer) {
  const [text] = summary(answer);
  const sentence = answer.boxes === null ? sentenceOf(answer) : "";
  $("#name").textContent = shown.name;
  $("#label").textContent = text;
  $("#sentence").textContent = answer.boxes?.length ? texts().objectsHint : sentence;
  // Read out by screen readers, which do not go through the panel by themselves.
  $("#status").textContent = `${text}. ${sentence}`;
  drawBoxList(answer.boxes);
  drawScores(answer);
  $("#nearest").hidden = answer.nearest.length === 0;
  $("#nearest .bars").replaceChildren(
    ...answer.nearest.map(({ label, probability }) => {
      const row = document.createElement("li");
      const bar = document.createElement("i");
      bar.style.width = `${100 * probability}%`;
      const track = document.createElement("span");
      track.className = "track";
      track.append(bar);
      row.append(span(label), track, span(percent(probability), "amount"));
      return row;
    }),
  );
  drawSimilar(answer);
}

function problemText(problem) {
  const { problems } = texts();
  return (problems[problem.code] ?? problems.other)(namedIn(problem));
}

/** [text, is_unknown] of a photo's answer, or of what went wrong with it. */
function entrySummary({ answer, error }) {
  return answer === null ? [problemText(error), false] : summary(answer);
}

/** [text, is_unknown] of an answer. */
function summary(answer) {
  if (answer.boxes === null) {
    return [answer.is_unknown ? texts().unknown : answer.label, answer.is_unknown];
  }
  const unknown = answer.boxes.filter((box) => box.is_unknown).length;
  return [texts().objects(answer.boxes.length, unknown), unknown > 0];
}

function sentenceOf(answer) {
  const p = percent(answer.p_value);
  if (!answer.is_unknown) return texts().known(p);
  return texts().strange(p, percent(answer.alpha), answer.nearest[0]?.label ?? "–");
}

function drawBoxList(boxes) {
  $("#boxes").hidden = !boxes?.length;
  if (!boxes) return;
  const had = $("#boxes").contains(document.activeElement);
  $("#boxes").replaceChildren(
    ...boxes.map((box, i) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = box.is_unknown ? "unknown" : "";
      button.setAttribute("aria-pressed", i === chosenBox);
      const swatch = span("", "swatch");
      const colour = colourOf(box, model?.classes ?? []);
      if (colour !== null) swatch.style.background = colour;
      button.append(swatch, span(boxLabel(box), "what"), span(boxNumbers(box), "amount"));
      button.onclick = () => {
        chosenBox = i;
        draw();
      };
      const item = document.createElement("li");
      item.append(button);
      return item;
    }),
  );
  const pressed = $("#boxes [aria-pressed=true]");
  if (had) pressed?.focus();
  // The list alone is scrolled, never the page.
  const list = $("#boxes");
  const end = pressed === null ? 0 : pressed.offsetTop + pressed.offsetHeight;
  const beyond = end - list.scrollTop - list.clientHeight;
  if (beyond > 0) list.scrollTop += beyond;
}

function drawScores(answer) {
  const histogram = model?.histograms[answer.score];
  const judged = answer.boxes ?? [answer];
  const scores = judged
    .map((item, i) => ({
      score: item.ood_score,
      unknown: item.is_unknown,
      chosen: answer.boxes === null || i === chosenBox,
    }))
    .filter((mark) => mark.score !== null);
  $("#histogram").hidden = !histogram || scores.length === 0;
  if ($("#histogram").hidden) return;
  const detects = answer.boxes !== null;
  const words = texts();
  $("#histogram figcaption").textContent = detects ? words.histogramBoxes : words.histogram;
  drawHistogram($("#histogram svg"), histogram, model.threshold, scores, {
    here: detects ? words.hereBox : words.here,
    // Classes of their own have thresholds of their own, and so have a detector's boxes.
    threshold: detects || model.classwise ? words.thresholdAll : words.threshold,
  });
}

function drawOverlay() {
  const boxes = photo.naturalWidth ? (shown?.answer?.boxes ?? []) : [];
  const size = [photo.naturalWidth, photo.naturalHeight];
  drawBoxes($("#overlay"), size, boxes, model?.classes ?? [], chosenBox);
}

function drawModel() {
  if (model === null) return;
  $("#model").textContent = texts().model(model.task, model.classes.length);
  const more = model.classes.length - MOST_CLASSES;
  const chips = model.classes.slice(0, MOST_CLASSES).map((name) => span(name));
  if (more > 0) chips.push(span(texts().more(more), "more"));
  $("#classes").replaceChildren(...chips, span(texts().unknown, "unknown"));
  $("#samples .strip")
    .querySelectorAll("button")
    .forEach((button, i) => button.setAttribute("aria-label", texts().sample(i + 1)));
}

function span(text, kind = "") {
  const element = document.createElement("span");
  element.textContent = text;
  element.className = kind;
  return element;
}

// Ways in

const named = (files) => [...files].map((file) => [file, file.name || texts().pasted]);

$("#choose").onclick = () => $("#file").click();
$("#file").onchange = () => {
  ask(named($("#file").files));
  $("#file").value = ""; // the same photo may be chosen again
};
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  $("#drop").classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) $("#drop").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("#drop").classList.remove("over");
  ask(named(event.dataTransfer.files));
});
document.addEventListener("paste", (event) => ask(named(event.clipboardData.files)));
$("#camera").hidden = !hasCamera();
$("#camera").onclick = async () => {
  const taken = await photograph(texts());
  if (taken !== null) ask([[taken, texts().taken]]);
};

photo.onload = drawOverlay;
photo.onerror = () => {
  $("#stage").hidden = true;
  $("#unshown").hidden = false;
};
new ResizeObserver(() => {
  if (shown?.answer) drawScores(shown.answer);
}).observe($("#answer"));

$("#save-json").onclick = () => download("knownot.json", "application/json", asJson(model));
$("#save-csv").onclick = () => download("knownot.csv", "text/csv", asCsv());
$("#clear").onclick = () => {
  forget();
  shown = problem = null;
  $("#stage").hidden = $("#unshown").hidden = true;
  $("#drop").classList.add("empty");
  draw();
  $("#choose").focus();
};
$("#key").onsubmit = (event) => {
  event.preventDefault();
  useKey($("#key-value").value);
  start();
};
for (const button of $("#languages").children) button.onclick = () => choose(button.lang);

function choose(name) {
  speak(name);
  $("#languages").setAttribute("aria-label", texts().languages);
  for (const button of $("#languages").children) {
    button.setAttribute("aria-pressed", button.lang === name);
  }
  draw();
}

async function start() {
  try {
    problem = null;
    model = await describe();
    $("#key").hidden = true;
    await offerSamples(model.samples);
  } catch (error) {
    fail(error);
  }
  draw();
}

async function offerSamples(count) {
  const blobs = await Promise.all([...Array(count).keys()].map(sample));
  $("#samples").hidden = count === 0;
  $("#samples .strip").replaceChildren(
    ...blobs.map((blob, i) => {
      const button = document.createElement("button");
      button.type = "button";
      const picture = document.createElement("img");
      picture.src = URL.createObjectURL(blob);
      picture.alt = "";
      button.append(picture);
      button.onclick = () => ask([[blob, texts().sample(i + 1)]]);
      return button;
    }),
  );
}

choose(language());
start();

// Where a score lies among those of the photos (or objects) that the model knows.

import { make } from "./svg.js";
import { number, texts } from "./texts.js";

const HEIGHT = 190;
const TOP = 44; // two lines of words above the bars
const BOTTOM = 26;
const SIDE = 8;

/**
 * @param svg element to draw into; as wide as it is shown
 * @param histogram {edges, counts} of GET /model
 * @param threshold score above which the answer is unknown, or null
 * @param scores [{score, unknown, chosen}]; the chosen one is named
 * @param named {here, threshold}: what the chosen score belongs to, what the threshold is called
 */
export function drawHistogram(svg, histogram, threshold, scores, named) {
  const { edges, counts } = histogram;
  const width = Math.max(svg.parentElement.clientWidth, 240);
  const [start, end] = [edges[0], edges[edges.length - 1]];
  // Far-away scores would squeeze the bars into a line: they are shown at the rim.
  const within = (score) => Math.min(Math.max(score, 2 * start - end), 2 * end - start);
  const places = scores.map((mark) => within(mark.score));
  const low = Math.min(start, ...places);
  const high = Math.max(end, ...places);
  const x = (score) => SIDE + ((width - 2 * SIDE) * (within(score) - low)) / (high - low);
  const floor = HEIGHT - BOTTOM;
  const tallest = Math.max(...counts, 1);

  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  svg.setAttribute("width", width);
  svg.setAttribute("height", HEIGHT);
  svg.replaceChildren();
  if (threshold !== null) {
    const left = x(threshold);
    const zone = { x: left, y: TOP, width: Math.max(width - SIDE - left, 0), height: floor - TOP };
    svg.append(make("rect", { class: "zone", ...zone }));
  }
  counts.forEach((count, i) => {
    if (count === 0) return;
    const height = Math.max(((floor - TOP - 6) * count) / tallest, 1.5);
    const left = x(edges[i]);
    const wide = Math.max(x(edges[i + 1]) - left - 1.5, 1);
    const beyond = threshold !== null && edges[i] >= threshold;
    const bar = { x: left, y: floor - height, width: wide, height, rx: Math.min(2, wide / 2) };
    svg.append(make("rect", { class: beyond ? "bar beyond" : "bar", ...bar }));
  });
  svg.append(make("line", { class: "axis", x1: SIDE, x2: width - SIDE, y1: floor, y2: floor }));
  svg.append(make("text", { x: SIDE, y: HEIGHT - 8 }, `← ${texts().familiar}`));
  const odd = { x: width - SIDE, y: HEIGHT - 8, "text-anchor": "end" };
  svg.append(make("text", odd, `${texts().odd} →`));
  if (threshold !== null) {
    const place = x(threshold);
    svg.append(make("line", { class: "threshold", x1: place, x2: place, y1: TOP - 8, y2: floor }));
    svg.append(words(named.threshold, place, TOP - 13, width, "threshold"));
  }
  for (const mark of [...scores].sort((a, b) => a.chosen - b.chosen)) {
    const place = x(mark.score);
    const kind = `mark${mark.unknown ? " unknown" : ""}${mark.chosen ? " chosen" : ""}`;
    const top = mark.chosen ? 22 : floor - 18;
    svg.append(make("line", { class: kind, x1: place, x2: place, y1: top, y2: floor }));
    if (!mark.chosen) continue;
    svg.append(make("circle", { class: kind, cx: place, cy: floor, r: 5 }));
    const beyond = mark.score > high ? `${named.here} →` : named.here;
    svg.append(words(beyond, place, 15, width, kind));
  }
  const told = scores.find((mark) => mark.chosen);
  const limit = threshold === null ? "∞" : number(threshold);
  svg.setAttribute("aria-label", texts().histogramText(told ? number(told.score) : "–", limit));
}

/** A text above a place, moved inwards where it would leave the picture. */
function words(text, place, y, width, kind) {
  const anchor = place < 70 ? "start" : place > width - 70 ? "end" : "middle";
  const x = { start: Math.max(place - 6, 2), end: Math.min(place + 6, width - 2), middle: place }[anchor];
  return make("text", { x, y, "text-anchor": anchor, class: kind }, text);
}

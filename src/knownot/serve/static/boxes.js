// Boxes of a detector over its photo.

import { make } from "./svg.js";
import { percent, texts } from "./texts.js";

// The colours of `knownot predict --save-images`; none is near the one of unknown objects.
const COLOURS = ["#0072b2", "#f0e442", "#009e73", "#cc79a7", "#56b4e9", "#332288"];

/** The colour of a box: its class's, or null for unknown, whose colour is the theme's. */
export function colourOf(box, classes) {
  if (box.is_unknown) return null;
  return COLOURS[Math.max(classes.indexOf(box.nearest_class), 0) % COLOURS.length];
}

/**
 * @param svg element that lies over the photo
 * @param size [width, height] of the photo in its own pixels, the unit of the boxes
 * @param boxes those of the answer
 * @param chosen index of the chosen one, or null
 */
export function drawBoxes(svg, size, boxes, classes, chosen) {
  svg.setAttribute("viewBox", `0 0 ${size[0]} ${size[1]}`);
  svg.replaceChildren();
  boxes.forEach((box, i) => {
    const [x1, y1, x2, y2] = box.box;
    const place = { x: x1, y: y1, width: Math.max(x2 - x1, 0), height: Math.max(y2 - y1, 0) };
    const state = `${box.is_unknown ? " unknown" : ""}${i === chosen ? " chosen" : ""}`;
    svg.append(make("rect", { class: `halo${state}`, ...place }));
    const line = make("rect", { class: `box${state}`, ...place });
    const colour = colourOf(box, classes);
    if (colour !== null) line.setAttribute("stroke", colour);
    svg.append(line);
  });
}

/** One line about a box. */
export function boxNumbers(box) {
  if (!box.is_unknown) return box.confidence === null ? "" : percent(box.confidence);
  const p = box.p_value === null ? "" : `p ${percent(box.p_value)}`;
  return box.nearest_class ? `${box.nearest_class}? ${p}` : p;
}

export function boxLabel(box) {
  return box.is_unknown ? texts().unknown : box.label;
}

// The training photos most like a photo, where the owner keeps thumbnails of them.

import { Refusal, thumbnail } from "./service.js";
import { texts } from "./texts.js";

const section = document.querySelector("#similar");
const list = section.querySelector("ol");
let shown = null; // the answer that the list is of

export function drawSimilar(answer) {
  if (answer !== shown) list.replaceChildren(...answer.nearest_photos.map(item));
  shown = answer;
  section.hidden = list.children.length === 0;
  for (const picture of list.querySelectorAll("img")) {
    picture.alt = texts().trainingPhoto(picture.dataset.kind);
  }
}

function item({ label, thumbnail: address }) {
  const picture = document.createElement("img");
  picture.dataset.kind = label;
  const caption = document.createElement("span");
  caption.textContent = label;
  caption.setAttribute("aria-hidden", "true"); // the picture's text says it
  const item = document.createElement("li");
  item.append(picture, caption);
  load(picture, address).catch((error) => {
    item.remove(); // it is gone, or the service is
    section.hidden = list.children.length === 0;
    if (!(error instanceof Refusal)) throw error;
  });
  return item;
}

/** Fetched, since an `img` by itself sends no key. */
async function load(picture, address) {
  const url = URL.createObjectURL(await thumbnail(address));
  picture.onload = picture.onerror = () => URL.revokeObjectURL(url);
  picture.src = url;
}

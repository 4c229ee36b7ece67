// A photo from the camera, in a dialog that Escape closes.

const dialog = document.querySelector("#shutter");
const video = dialog.querySelector("video");
const problem = dialog.querySelector(".problem");
const take = dialog.querySelector("#take");

/** Whether there is a way to ask for one: only on this machine or over HTTPS. */
export const hasCamera = () => Boolean(navigator.mediaDevices?.getUserMedia);

/** Show the camera; the photo as a Blob, or null if none was taken. */
export async function photograph(texts) {
  problem.hidden = true;
  take.disabled = true;
  dialog.showModal();
  // Closed while the browser still asks for permission: the stream is then ended on arrival.
  const closed = new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(null), { once: true });
  });
  const stream = open(texts);
  const taken = new Promise((resolve) => {
    take.onclick = () => resolve(still());
  });
  const photo = await Promise.race([closed, taken]);
  dialog.close();
  video.srcObject = null;
  stream.then((found) => found?.getTracks().forEach((track) => track.stop()));
  return photo;
}

async function open(texts) {
  try {
    const stream = await navigator.mediaDevices.getUserMedia({
      video: { facingMode: "environment", width: { ideal: 1280 } },
    });
    if (!dialog.open) return stream;
    video.srcObject = stream;
    await video.play();
    take.disabled = false;
    take.focus();
    return stream;
  } catch (error) {
    problem.textContent = error.name === "NotAllowedError" ? texts.cameraDenied : texts.noCamera;
    problem.hidden = false;
    return null;
  }
}

function still() {
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
}

dialog.querySelector("#cancel").onclick = () => dialog.close();

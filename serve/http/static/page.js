// The page: photos and a motion in, a video out, over the same interface that programs use.
"use strict";

const at = (id) => document.getElementById(id);
let photos = [];
let videoId = null;
let chosen = 0; // Grows with every choice of a motion, so that late answers to an earlier one are left.

function tell(problem) {
  at("problem").textContent = problem || "";
  at("problem").hidden = !problem;
}

async function ask(path, options = {}) {
  const key = at("key").value;
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const answer = await fetch(path, { ...options, headers });
  if (answer.ok) return answer;
  if (answer.status === 401) at("key-field").hidden = false;
  const body = await answer.json().catch(() => null);
  throw new Error(body?.error?.message || `the service answered ${answer.status}`);
}

async function play(element, path, wanted = () => true) {
  const content = await (await ask(path)).blob();
  if (!wanted()) return;
  if (element.src) URL.revokeObjectURL(element.src);
  element.src = URL.createObjectURL(content);
}

const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

// Motions

function option(motion) {
  return new Option(`${motion.id.slice(0, 15)}… · ${motion.num_frames} frames`, motion.id);
}

async function listMotions() {
  const { data } = await (await ask("v1/motions")).json();
  const select = at("motion");
  select.replaceChildren(new Option("The service’s own", ""));
  for (const motion of data) if (motion.status === "completed") select.add(option(motion));
}

async function showMotion(id) {
  const mine = ++chosen;
  at("motion-state").textContent = "";
  try {
    await play(at("preview"), `v1/motions/${id || "default"}/preview`, () => mine === chosen);
  } catch (error) {
    if (mine !== chosen) return;
    at("preview").removeAttribute("src");
    at("preview").load();
    // A service without a motion of its own is no fault as long as none was asked for.
    at("motion-state").textContent = error.message;
  }
}

async function uploadMotion(file) {
  const mine = ++chosen;
  tell("");
  at("render").disabled = true;
  try {
    const form = new FormData();
    form.append("file", file);
    at("motion-state").textContent = "Sending …";
    let motion = await (await ask("v1/motions", { method: "POST", body: form })).json();
    while (motion.status === "queued" || motion.status === "in_progress") {
      at("motion-state").textContent = "Reading the poses …";
      await pause(0.5);
      if (mine !== chosen) return;
      motion = await (await ask(`v1/motions/${motion.id}`)).json();
    }
    if (motion.error) throw new Error(motion.error.message);
    await listMotions();
    at("motion").value = motion.id;
    await showMotion(motion.id);
    at("motion-state").textContent =
      `${motion.num_frames} frames, ${motion.num_filled} of them filled from their neighbours`;
  } catch (error) {
    at("motion-state").textContent = "";
    tell(error.message);
  } finally {
    at("render").disabled = false;
  }
}

// Photos

function showPhotos(files) {
  photos = [...files];
  at("photo-list").replaceChildren(
    ...photos.map((file) => {
      const picture = new Image();
      picture.src = URL.createObjectURL(file);
      picture.alt = file.name;
      picture.onload = () => URL.revokeObjectURL(picture.src);
      const item = document.createElement("li");
      item.append(picture);
      return item;
    }),
  );
}

// Rendering

function showState(video) {
  at("progress").value = video.progress;
  at("state").textContent =
    video.status === "queued" ? "Waiting for its turn" : `${video.status.replace("_", " ")} · ${video.progress}%`;
  at("warnings").replaceChildren(
    ...(video.warnings || []).map((text) => {
      const item = document.createElement("li");
      item.textContent = text;
      return item;
    }),
  );
}

function showFrame({ index, image }) {
  const picture = new Image();
  picture.src = image;
  picture.alt = `Frame ${index}`;
  const item = document.createElement("li");
  item.dataset.index = index;
  item.append(picture);
  const later = [...at("frames").children].find((other) => Number(other.dataset.index) > index);
  at("frames").insertBefore(item, later || null);
  at("latest").src = image;
  at("latest").hidden = false;
  at("nothing").hidden = true;
}

async function* events(id) {
  const { body } = await ask(`v1/videos/${id}/events`);
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const [, name, data] = block.match(/^event: (.*)\ndata: (.*)$/) || [];
      if (name) yield [name, JSON.parse(data)];
    }
  }
}

async function follow(id) {
  for (;;) {
    const seen = new Set();
    for await (const [name, body] of events(id)) {
      if (name === "frame") {
        if (!seen.has(body.index)) showFrame(body);
        seen.add(body.index);
      } else if (name === "progress") {
        showState(body);
      } else {
        return body;
      }
    }
    // The stream broke off before the end; begin again where the video is now.
    await pause(1);
    at("frames").replaceChildren();
  }
}

async function render() {
  tell("");
  if (!photos.length) return tell("photos must be at least one, got none");
  const form = new FormData();
  for (const photo of photos) form.append("input_reference", photo);
  if (at("motion").value) form.append("motion", at("motion").value);
  form.append("preset", at("preset").value);
  form.append("seed", at("seed").value);
  at("render").disabled = true;
  at("frames").replaceChildren();
  for (const id of ["result", "latest", "download"]) at(id).hidden = true;
  at("nothing").hidden = false;
  try {
    const video = await (await ask("v1/videos", { method: "POST", body: form })).json();
    videoId = video.id;
    showState(video);
    at("progress-section").hidden = false;
    at("cancel").hidden = false;
    const end = await follow(video.id);
    at("cancel").hidden = true;
    if (end.status === "cancelled") {
      at("state").textContent = "cancelled";
      return;
    }
    showState(end);
    if (end.error) throw new Error(end.error.message);
    await play(at("result"), `v1/videos/${video.id}/content`);
    at("result").hidden = false;
    at("latest").hidden = true;
    at("nothing").hidden = true;
    at("download").href = at("result").src;
    at("download").download = `${video.id}.mp4`;
    at("download").hidden = false;
    // Side by side, from their first frames on.
    at("preview").currentTime = 0;
    at("result").currentTime = 0;
  } catch (error) {
    tell(error.message);
  } finally {
    at("render").disabled = false;
    at("cancel").hidden = true;
  }
}

// Wiring

function dropping(section, input, take) {
  input.addEventListener("change", () => input.files.length && take(input.files));
  section.addEventListener("dragover", (event) => {
    event.preventDefault();
    section.classList.add("over");
  });
  section.addEventListener("dragleave", () => section.classList.remove("over"));
  section.addEventListener("drop", (event) => {
    event.preventDefault();
    section.classList.remove("over");
    if (event.dataTransfer.files.length) take(event.dataTransfer.files);
  });
}

async function begin() {
  try {
    await listMotions();
    tell("");
    await showMotion(at("motion").value);
  } catch (error) {
    tell(error.message);
  }
}

at("key").value = sessionStorage.getItem("key") || "";
at("key").addEventListener("change", () => {
  sessionStorage.setItem("key", at("key").value);
  begin();
});
dropping(at("photo-drop"), at("photos"), showPhotos);
dropping(at("motion-drop"), at("motion-file"), (files) => uploadMotion(files[0]));
at("motion").addEventListener("change", () => showMotion(at("motion").value));
at("cancel").addEventListener("click", () =>
  ask(`v1/videos/${videoId}`, { method: "DELETE" }).catch((error) => tell(error.message)),
);
at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  render();
});
begin();

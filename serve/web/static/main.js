// The page: signs in where keys are in use, then connects forms, motions, subjects and videos.

import { ApiClient } from "./api.js";
import { $, guarded, alertUser, setOptions, show } from "./dom.js";
import { Motions } from "./motions.js";
import { Photos } from "./photos.js";
import { Subjects } from "./subjects.js";
import { Videos } from "./videos.js";

const api = new ApiClient();
const photos = new Photos();
const motions = new Motions(api);
const subjects = new Subjects(api, photos);
const videos = new Videos(api);

async function start() {
  let model;
  try {
    ({ data: [model] } = await api.json("GET", "v1/models"));
  } catch (error) {
    if (error.status !== 401) throw error;
    if (api.key) alertUser(new Error("That is not a valid key."));
    show($("sign-in"), true);
    $("key").focus();
    return;
  }
  show($("sign-in"), false);
  $("alerts").replaceChildren();
  show($("app"), true);
  setOptions($("preset"), model.presets.map((preset) => [preset.name, `${preset.name} · ${preset.num_steps} steps`]), "balanced");
  $("size").placeholder = model.size;
  const loads = await Promise.allSettled([motions.load(), subjects.load(), videos.load()]);
  for (const load of loads) if (load.status === "rejected") alertUser(load.reason);
}

async function render() {
  const form = new FormData();
  photos.addTo(form, "input_reference");
  motions.addTo(form);
  form.append("preset", $("preset").value);
  form.append("seed", $("seed").value.trim() || "0");
  form.append("align", $("align").checked);
  for (const name of ["subject", "size", "seconds"]) {
    const value = $(name).value.trim();
    if (value) form.append(name, value);
  }
  $("render").disabled = true;
  try {
    await videos.submit(form);
  } finally {
    $("render").disabled = false;
  }
}

$("render").addEventListener("click", guarded(render));
$("sign-in").addEventListener("submit", guarded(async (event) => {
  event.preventDefault();
  api.key = $("key").value.trim();
  $("key").value = "";
  await start();
}));
guarded(start)();

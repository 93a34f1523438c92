// Stored motions: list, upload, preview, delete.

import { $, guarded, isFinished, onFiles, setOptions, show, sleep } from "./dom.js";

const DEFAULT = "default";

export class Motions {
  constructor(api) {
    this.api = api;
    this.shown = null;
    $("motion").addEventListener("change", guarded(() => this.preview()));
    $("motion-delete").addEventListener("click", guarded(() => this.remove()));
    onFiles($("motion-drop"), $("motion-input"), guarded(([file]) => this.upload(file)));
  }

  get selected() {
    return $("motion").value;
  }

  async load(value = this.selected || DEFAULT) {
    const { data } = await this.api.json("GET", "v1/motions");
    this.stored = new Map(data.filter((motion) => motion.status === "completed").map((motion) => [motion.id, motion]));
    const options = [...this.stored.values()].map((motion) => [
      motion.id,
      `${motion.num_frames} frames, ${Number(motion.seconds).toFixed(1)} s · ${motion.id.slice(7, 13)}`,
    ]);
    setOptions($("motion"), [[DEFAULT, "The service’s own"], ...options], value);
    await this.preview();
  }

  async preview() {
    const id = this.selected;
    show($("motion-delete"), id !== DEFAULT);
    const motion = this.stored.get(id);
    this.state(motion ? `${motion.num_frames} frames, ${motion.num_filled} of them interpolated` : "");
    const player = $("preview");
    let url = "";
    try {
      url = await this.api.objectUrl(`v1/motions/${id}/preview`);
    } catch (error) {
      // A service without a default motion is fine as long as another one is chosen.
      this.state(error.message);
    }
    if (id !== this.selected) return;
    if (player.src) URL.revokeObjectURL(player.src);
    if (url) player.src = url;
    else player.removeAttribute("src");
    show(player, Boolean(url));
    show($("preview-empty"), !url);
  }

  async upload(file) {
    const form = new FormData();
    form.append("file", file);
    $("motion-input").disabled = true;
    try {
      this.state("Uploading …");
      let motion = await this.api.json("POST", "v1/motions", { form });
      while (!isFinished(motion)) {
        this.state("Extracting the poses …");
        await sleep(0.5);
        motion = await this.api.json("GET", `v1/motions/${motion.id}`);
      }
      this.state("");
      if (motion.error) throw new Error(motion.error.message);
      await this.load(motion.id);
    } catch (error) {
      this.state("");
      throw error;
    } finally {
      $("motion-input").disabled = false;
    }
  }

  async remove() {
    await this.api.json("DELETE", `v1/motions/${this.selected}`);
    await this.load(DEFAULT);
  }

  addTo(form) {
    if (this.selected !== DEFAULT) form.append("motion", this.selected);
  }

  state(text) {
    $("motion-state").textContent = text;
  }
}

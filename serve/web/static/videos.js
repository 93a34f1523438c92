// Videos: submit, list, follow the selected one, cancel, download.

import { $, alertUser, element, guarded, isFinished, show, sleep, statusText } from "./dom.js";

const POLL_SECONDS = 2;
const STRIP_FRAMES = 24;

export class Videos {
  all = new Map();
  selected = "";
  polling = false;

  constructor(api) {
    this.api = api;
    this.following = new AbortController();
    $("cancel").addEventListener("click", guarded(() => this.remove(this.selected)));
  }

  // Lists the videos of this key; selects the newest unfinished one, also after a reload.
  async load() {
    const { data } = await this.api.json("GET", "v1/videos?limit=20");
    this.all = new Map(data.map((video) => [video.id, video]));
    this.draw();
    const video = this.all.get(this.selected) ?? data.find((one) => !isFinished(one));
    if (video && video.id !== this.selected) this.select(video.id);
    if (!data.every(isFinished)) this.poll();
  }

  async submit(form) {
    const video = await this.api.json("POST", "v1/videos", { form });
    this.all = new Map([[video.id, video], ...this.all]);
    this.select(video.id);
    this.poll();
  }

  // One connection follows the selected video; the others are polled together.
  async poll() {
    if (this.polling) return;
    this.polling = true;
    await sleep(POLL_SECONDS);
    this.polling = false;
    await this.load().catch(() => this.poll());
  }

  update(video) {
    if (this.all.has(video.id)) this.all.set(video.id, { ...this.all.get(video.id), ...video });
    this.draw();
  }

  draw() {
    show($("videos-empty"), this.all.size === 0);
    $("videos").replaceChildren(...[...this.all.values()].map((video) => this.row(video)));
  }

  row(video) {
    const when = new Date(1000 * video.created_at).toLocaleString();
    const text = [when, video.preset, `seed ${video.seed}`, video.size].filter(Boolean).join(" · ");
    const open = element("button", { type: "button", className: "open", textContent: text });
    open.addEventListener("click", () => this.select(video.id));
    const badge = element("span", { className: `badge ${video.status}`, textContent: statusText(video) });
    const remove = element("button", { type: "button", textContent: isFinished(video) ? "Delete" : "Cancel" });
    remove.addEventListener("click", guarded(() => this.remove(video.id)));
    return element("li", { className: video.id === this.selected ? "current" : "" }, open, badge, remove);
  }

  async remove(id) {
    $("cancel").disabled = true;
    try {
      await this.api.json("DELETE", `v1/videos/${id}`);
    } catch (error) {
      if (error.status !== 404) throw error;
    } finally {
      $("cancel").disabled = false;
    }
    if (id === this.selected) {
      this.following.abort();
      this.end({ id, status: "cancelled", progress: 0 });
    }
    this.all.delete(id);
    this.draw();
  }

  select(id) {
    this.selected = id;
    this.following.abort();
    this.following = new AbortController();
    this.seen = 0;
    $("strip").replaceChildren();
    this.stage("");
    show($("selected"), true);
    show($("download"), false);
    this.draw();
    this.show(this.all.get(id));
    const { signal } = this.following;
    this.follow(id, signal).catch((error) => signal.aborted || alertUser(error));
  }

  // Shows a video until its end; reconnects when the stream breaks off.
  async follow(id, signal) {
    while (!signal.aborted) {
      try {
        for await (const [name, body] of this.api.events(id, signal)) {
          if (signal.aborted) return;
          if (name === "frame") {
            this.frame(body);
            continue;
          }
          this.update(body);
          if (name === "progress") this.show(this.all.get(id) ?? body);
          else return await this.finish(body, signal);
        }
      } catch (error) {
        if (signal.aborted) return;
        if (error.status === 404) return this.end({ id, status: "cancelled", progress: 0 });
        if (error.status && error.status !== 429 && error.status < 500) throw error;
      }
      await sleep(1);
    }
  }

  async finish(video, signal) {
    this.end(video);
    if (video.status === "failed") throw new Error(video.error.message);
    if (video.status !== "completed") return;
    const url = await this.api.objectUrl(`v1/videos/${video.id}/content`, { signal });
    if (signal.aborted) return URL.revokeObjectURL(url);
    this.stage("result", url);
    Object.assign($("download"), { href: url, download: `${video.id}.mp4` });
    show($("download"), true);
  }

  end(video) {
    if (video.status === "cancelled") this.all.delete(video.id);
    this.draw();
    this.stage("");
    this.show(video);
  }

  show(video) {
    const frames = video.num_frames ? ` · ${video.num_frames} frames` : "";
    $("status").textContent = statusText(video) + frames;
    $("progress").value = video.progress ?? 0;
    $("warnings").replaceChildren(...(video.warnings ?? []).map((text) => element("li", { textContent: text })));
    show($("cancel"), !isFinished(video));
  }

  frame({ index, image }) {
    this.seen += 1;
    this.stage("newest", image);
    const every = Math.ceil((this.all.get(this.selected)?.num_frames ?? 1) / STRIP_FRAMES);
    if (index % every) return;
    const small = element("img", { src: image, alt: `Frame ${index}` });
    small.dataset.index = index;
    const after = [...$("strip").children].find((other) => Number(other.dataset.index) > index);
    $("strip").insertBefore(small, after ?? null);
  }

  // Shows the result, the newest frame, or neither.
  stage(what, url = "") {
    const result = $("result");
    if (result.src && what !== "newest") {
      URL.revokeObjectURL(result.src);
      result.removeAttribute("src");
    }
    if (what) $(what).src = url;
    for (const name of ["result", "newest"]) show($(name), name === what);
    show($("result-empty"), !what);
  }
}

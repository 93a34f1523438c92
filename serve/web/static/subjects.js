// Subjects: finetune on the selected photos, list, delete.

import { $, element, guarded, isFinished, setOptions, sleep, statusText } from "./dom.js";

export class Subjects {
  polling = false;

  constructor(api, photos) {
    this.api = api;
    this.photos = photos;
    $("finetune").addEventListener("click", guarded(() => this.create()));
  }

  async load(value = $("subject").value) {
    const { data } = await this.api.json("GET", "v1/subjects");
    const usable = data.filter((subject) => subject.status !== "failed");
    setOptions(
      $("subject"),
      [["", "None (base model)"], ...usable.map((subject) => [subject.id, this.label(subject)])],
      value
    );
    $("subjects").replaceChildren(...data.map((subject) => this.row(subject)));
    if (!data.every(isFinished)) this.poll();
  }

  label(subject) {
    const name = subject.name || subject.id.slice(8, 14);
    return subject.status === "completed" ? name : `${name} · ${statusText(subject)}`;
  }

  row(subject) {
    const text = subject.error ? `${this.label(subject)}: ${subject.error.message}` : this.label(subject);
    const remove = element("button", { type: "button", textContent: "Delete" });
    remove.addEventListener("click", guarded(async () => {
      await this.api.json("DELETE", `v1/subjects/${subject.id}`);
      await this.load();
    }));
    const badge = element("span", { className: `badge ${subject.status}`, textContent: statusText(subject) });
    return element("li", {}, element("span", { textContent: text, title: text }), badge, remove);
  }

  async create() {
    const form = new FormData();
    this.photos.addTo(form, "photos");
    form.append("name", $("subject-name").value.trim());
    $("finetune").disabled = true;
    try {
      const subject = await this.api.json("POST", "v1/subjects", { form });
      await this.load(subject.id);
    } finally {
      $("finetune").disabled = false;
    }
  }

  async poll() {
    if (this.polling) return;
    this.polling = true;
    await sleep(2);
    this.polling = false;
    await this.load().catch(() => this.poll());
  }
}

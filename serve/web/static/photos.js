// The photos that are selected for the next render or finetuning.

import { $, element, onFiles } from "./dom.js";

export class Photos {
  files = [];

  constructor() {
    onFiles($("photo-drop"), $("photo-input"), (files) => {
      this.files.push(...files);
      this.draw();
    });
  }

  draw() {
    for (const image of $("photos").querySelectorAll("img")) URL.revokeObjectURL(image.src);
    $("photos").replaceChildren(...this.files.map((file) => this.thumbnail(file)));
  }

  thumbnail(file) {
    const image = element("img", { src: URL.createObjectURL(file), alt: file.name });
    image.addEventListener("error", () => image.replaceWith(element("figcaption", { textContent: file.name })));
    const remove = element("button", { type: "button", textContent: "×", title: "Remove", ariaLabel: `Remove ${file.name}` });
    remove.addEventListener("click", () => {
      this.files = this.files.filter((other) => other !== file);
      this.draw();
    });
    return element("figure", {}, image, remove);
  }

  // Adds the photos to a form; at least one is required.
  addTo(form, field) {
    if (!this.files.length) throw new Error("Choose at least one photo of the person first.");
    for (const file of this.files) form.append(field, file);
  }
}

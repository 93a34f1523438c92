// Helpers for elements, messages and files. Text is always set as text, never as HTML.

export const $ = (id) => document.getElementById(id);

export function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

export function show(node, visible) {
  node.hidden = !visible;
}

export function alertUser(error) {
  console.assert(error instanceof Error);
  const text = error instanceof TypeError ? "The page failed; reload it." : error.message;
  if (error instanceof TypeError) console.error(error);
  const box = element("div", { className: "alert", role: "alert" }, element("p", { textContent: text }));
  const close = element("button", { type: "button", textContent: "×", ariaLabel: "Close" });
  close.addEventListener("click", () => box.remove());
  box.append(close);
  $("alerts").append(box);
  while ($("alerts").children.length > 3) $("alerts").firstElementChild.remove();
}

// Runs an action of the user; errors become messages.
export function guarded(action) {
  return async (...args) => {
    try {
      return await action(...args);
    } catch (error) {
      alertUser(error);
    }
  };
}

// A file input within a label that also accepts dropped files.
export function onFiles(label, input, take) {
  input.addEventListener("change", () => {
    const files = [...input.files];
    input.value = "";
    if (files.length) take(files);
  });
  for (const type of ["dragenter", "dragover"]) {
    label.addEventListener(type, (event) => {
      event.preventDefault();
      label.classList.add("over");
    });
  }
  for (const type of ["dragleave", "drop"]) label.addEventListener(type, () => label.classList.remove("over"));
  label.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files.length) take([...event.dataTransfer.files]);
  });
}

export function setOptions(select, options, value) {
  select.replaceChildren(...options.map(([key, text]) => element("option", { value: key, textContent: text })));
  if (options.some(([key]) => key === value)) select.value = value;
}

export const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

export function statusText({ status, progress }) {
  if (status === "queued") return "Waiting in the queue";
  if (status === "in_progress") return `In progress · ${progress} %`;
  return status[0].toUpperCase() + status.slice(1);
}

export const isFinished = ({ status }) => !["queued", "in_progress"].includes(status);

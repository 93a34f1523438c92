// API reference from the OpenAPI document of this service.

import { $, element } from "./dom.js";

const document_ = await (await fetch(new URL("../openapi.json", import.meta.url))).json();

const resolve = (schema) => (schema?.$ref ? document_.components.schemas[schema.$ref.split("/").pop()] : schema ?? {});

function typeOf(schema) {
  const found = resolve(schema);
  if (found.anyOf) return found.anyOf.map(typeOf).join(" or ");
  if (found.type === "array") return `list of ${typeOf(found.items)}`;
  if (found.enum) return found.enum.join(", ");
  if (found.contentMediaType || found.format === "binary") return "file";
  return found.title && found.properties ? found.title : found.type ?? "any";
}

function rows(operation) {
  const parameters = (operation.parameters ?? []).map((one) => [one.name, one.in, typeOf(one.schema), one.required, one.description]);
  const body = Object.entries(operation.requestBody?.content ?? {}).flatMap(([, { schema }]) => {
    const found = resolve(schema);
    return Object.entries(found.properties ?? {}).map(([name, field]) => [
      name, "form", typeOf(field), found.required?.includes(name), field.description,
    ]);
  });
  return [...parameters, ...body];
}

function table(operation) {
  const all = rows(operation);
  if (!all.length) return "";
  const head = element("tr", {}, ...["Name", "In", "Type", "", "Description"].map((text) => element("th", { textContent: text })));
  const lines = all.map(([name, where, type, required, text]) =>
    element("tr", {}, ...[name, where, type, required ? "required" : "", text ?? ""].map((cell) => element("td", { textContent: cell })))
  );
  return element("table", {}, head, ...lines);
}

const articles = Object.entries(document_.paths).flatMap(([path, methods]) =>
  Object.entries(methods).map(([method, operation]) =>
    element(
      "article", { className: "card" },
      element("h2", {}, element("b", { textContent: method.toUpperCase() }), path),
      element("p", { textContent: operation.description ?? operation.summary }),
      table(operation)
    )
  )
);
$("routes").replaceChildren(element("p", { textContent: document_.info.description }), ...articles);

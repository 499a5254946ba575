// The download: the rows as they came, and behind them what `newsdesk predict` would write.

import { lineWriter } from "./csv.js";
import { make } from "./results.js";

const LINES = 2000; // written at a time, so that the page stays awake

/** The cells of what is said of a text, by column, as `newsdesk predict` writes them. */
export function cellsOf(said) {
  const number = (value) => Number.isInteger(value) ? value.toFixed(1) : String(value ?? "");
  const cells = { candidates: said.candidates?.join(" | "), reason: said.reason, off_topic: number(said.off_topic) };
  if (said.labels === undefined) return { label: said.label, probability: number(said.probability), ...cells };
  const probabilities = said.labels?.map((label) => number(said.probabilities[label])).join(";");
  return { labels: joined(said.labels), probabilities, unsure: joined(said.unsure), ...cells };
}

/** Labels as one cell, from which they can be told apart again. */
function joined(labels) {
  const isAmbiguous = labels?.some((label) => label.includes(";") || label !== label.trim() || label.startsWith("["));
  return isAmbiguous ? pythonJson(labels) : labels?.join(";");
}

const pythonJson = (texts) => `[${texts.map((text) => JSON.stringify(text)).join(", ")}]`;

/** The columns of what the models say, those of `newsdesk predict`; of several models, with their names. */
function answeredColumns(work) {
  const answered = [];
  for (const [place, model] of work.models.entries()) {
    const rule = work.rules.get(model.id);
    const kinds = model.task === "multi" ? ["labels", "probabilities"] : ["label", "probability"];
    if (model.task === "multi" && rule?.promise) kinds.push("unsure");
    if (model.task !== "multi" && (rule?.promise || rule?.coverage)) kinds.push("candidates");
    kinds.push("reason");
    if (rule?.off_topic) kinds.push("off_topic");
    for (const kind of kinds) {
      let column = work.models.length > 1 ? `${model.id} ${kind}` : kind;
      const taken = new Set([...work.columns, ...answered.map((each) => each.column)]);
      while (taken.has(column)) column = `predicted_${column}`;
      answered.push({ column, place, kind });
    }
  }
  return answered;
}

/** The rows as they came, with what each model says of them in columns behind. */
export async function download(work) {
  const answered = answeredColumns(work);
  const line = lineWriter(work.delimiter || ",", work.harmless);
  const pieces = [work.hasMark ? "\ufeff" : ""];
  pieces.push(line([...work.columns, ...answered.map((each) => each.column)]));
  for (let from = 0; from < work.results.length; from += LINES) {
    const lines = work.results.slice(from, from + LINES).map((said, at) => {
      const row = work.rows[from + at];
      const cells = work.columns.map((_, place) => row[place] ?? "");
      return line([...cells, ...answered.map(({ place, kind }) => said[place][kind] ?? "")]);
    });
    pieces.push(lines.join(""));
    await new Promise((done) => setTimeout(done));
  }
  const address = URL.createObjectURL(new Blob(pieces, { type: "text/csv" }));
  const [ending] = /\.(csv|tsv|tab)$/i.exec(work.name) ?? [".csv"];
  make("a", { href: address, download: `${work.name.replace(/\.\w+$/, "")}-classified${ending}` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

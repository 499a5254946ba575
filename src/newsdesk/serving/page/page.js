// The page of `newsdesk serve`: what is to be classified, by which models, and how far that is.

import { CsvReader, encodingOf, isFormula, likeliestDelimiter, piecesOf } from "./csv.js";
import { cellsOf, download } from "./download.js";
import { counted, isLong, make, mixOf, name, numbers, OFF_TOPIC, percent, resultOf, shownText } from "./results.js";
import { ask, hasToken, patiently, Refused, useToken } from "./server.js";

const SHOWN = 300; // results on the page; the download has all

const LISTED = 40; // labels of a model, before there are results
const SAMPLE = 1 << 16; // characters of a file by which its delimiter is found
const LARGEST_FILE = 200e6; // bytes

const $ = (id) => document.getElementById(id);
const breathe = () => new Promise((done) => setTimeout(done));

let limits = null; // what /v1/limits says
let models = []; // what /v1/models says
let table = null; // the file that was chosen
let job = null; // what is, or was, classified

// --- what is said

/** Say what went wrong, and let people do something about it. */
async function explainTrouble(error) {
  if (error.name === "AbortError") return;
  if (!(error instanceof Refused)) throw error;
  const several = error.kind === "invalid" && chosenModels().length > 1;
  trouble(several ? `${error.sentence} Ask one model at a time to see which it is.` : error.sentence);
  if (error.status === 401) askForToken();
  if (error.status === 404) await ask("v1/models").then((found) => showModels(found.data), () => {});
}

function trouble(sentence) {
  $("trouble").textContent = sentence;
  $("trouble").hidden = !sentence;
}

function say(sentence) {
  $("status").textContent = sentence;
}

/** Show how far the work is: a sentence, and of a whole a share; without a sentence, that there is none. */
function progress(sentence, share = null) {
  $("progress").hidden = !sentence;
  $("progress").querySelector(".note").textContent = sentence;
  if (share !== null) $("progress").querySelector("progress").value = share;
}

// --- tokens and models

function askForToken() {
  $("token-form").hidden = false;
  $("token").select();
  $("token").focus();
}

$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useToken($("token").value.trim(), $("keep-token").checked);
  begin();
});

/** Learn what the server may be asked. */
async function begin() {
  trouble("");
  try {
    limits = await patiently(() => ask("v1/limits"), progress);
    const wrong = limits.promise.abstain;
    $("abstain").options[0].textContent = wrong ? `at most ${percent(wrong)}, as the server was told`
      : "any number: answer every text";
    showModels((await ask("v1/models")).data);
    $("token-form").hidden = true;
    $("ask").hidden = false;
  } catch (error) {
    if (error.status === 401 && !hasToken()) askForToken();
    else explainTrouble(error);
  }
  progress("");
}

/** Offer the models; those that were chosen stay so, and else the first is. */
function showModels(found) {
  const before = new Set(chosenModels().map((model) => model.id));
  models = found;
  const kept = found.some((model) => before.has(model.id));
  const choices = found.map((model) => {
    const checked = kept ? before.has(model.id) : model.is_default;
    const box = make("input", { type: "checkbox", value: model.id, checked });
    const facts = counted(model.labels.length, "label") + (model.task === "multi" ? ", several a text" : "");
    return choice(box, name(model.id), " ", make("small", {}, facts));
  });
  $("models").hidden = found.length === 1;
  $("models").firstElementChild.textContent = "Models, one or several side by side";
  $("models").querySelector(".choices").replaceChildren(...choices);
  modelsChosen();
}

const choice = (box, ...what) => make("label", { className: "choice" }, box, make("span", {}, ...what));

function chosenModels() {
  const ids = new Set([...$("models").querySelectorAll("input:checked")].map((box) => box.value));
  return models.filter((model) => ids.has(model.id));
}

/** Say what the chosen models know, as long as there are no results. */
function modelsChosen() {
  const chosen = chosenModels();
  const isPromised = "off_topic" in limits.promise; // by the server, whatever is chosen here
  $("off-topic").checked ||= isPromised;
  $("off-topic").disabled = isPromised || !chosen.every((model) => model.has_off_topic_score);
  if (table) offerColumns();
  if (job) return;
  say("");
  $("summary").replaceChildren(...chosen.map((model) => {
    const labels = model.labels.slice(0, LISTED).map((label) => make("li", {}, name(label)));
    const rest = model.labels.length - labels.length;
    if (rest) labels.push(make("li", { className: "more" }, `and ${rest} more`));
    const what = model.task === "multi" ? "gives each text all that fit of" : "gives each text one of";
    return make("div", { className: "knows" },
      make("p", {}, make("strong", {}, name(model.id)), ` ${what} ${counted(model.labels.length, "label")}:`),
      make("ul", { className: "chips" }, ...labels));
  }));
}
$("models").addEventListener("change", modelsChosen);

// --- files

/** Read a file, and offer its columns. */
async function takeFile(file, asked = {}) {
  trouble("");
  try {
    if (file.size > LARGEST_FILE) {
      throw new Error(`it is larger than ${LARGEST_FILE / 1e6} MB; newsdesk predict reads files of any size`);
    }
    const encoding = asked.encoding ?? await encodingOf(file);
    let reader = null;
    for await (const piece of piecesOf(file, encoding)) {
      reader ??= new CsvReader(asked.delimiter ?? delimiterOf(file, piece));
      reader.write(piece);
      progress(`Reading: ${counted(reader.rows.length, "row")}`);
      await breathe();
    }
    const rows = reader?.end() ?? [];
    if (!rows.length) throw new Error("it is empty");
    const mark = new Uint8Array(await file.slice(0, 3).arrayBuffer());
    const hasMark = encoding.startsWith("utf-16") || (mark[0] === 0xef && mark[1] === 0xbb && mark[2] === 0xbf);
    table = { file, encoding, hasMark, all: rows, delimiter: reader.delimiter };
    useHeader(looksLikeHeader(rows, reader.delimiter));
    const hadFocus = document.activeElement === $("file");
    $("typing").hidden = true;
    $("filing").hidden = false;
    if (hadFocus) $("columns").querySelector("input:checked").focus();
  } catch (error) {
    trouble(`The file ${file.name} cannot be used: ${error.message}.`);
    if (asked.delimiter === undefined) dropFile();
  }
  progress("");
}

const delimiterOf = (file, text) => /\.txt$/i.test(file.name) ? "" : likeliestDelimiter(text.slice(0, SAMPLE));

const knownColumns = () => chosenModels().flatMap((model) => model.text_columns);

/** Whether the first row names columns: one that a model reads, or short names that do not come again. */
function looksLikeHeader(rows, delimiter) {
  const [first] = rows;
  if (knownColumns().some((column) => first.includes(column))) return true;
  if (rows.length === 1 || delimiter === "") return false;
  const names = first.every((cell) => cell.trim() && cell.length <= 40 && Number.isNaN(Number(cell)));
  return names && new Set(first).size === first.length && !rows.slice(1, 50).some((row) => row[0] === first[0]);
}

function useHeader(hasHeader) {
  table.hasHeader = hasHeader;
  table.rows = hasHeader ? table.all.slice(1) : table.all;
  const width = table.all.reduce((most, row) => Math.max(most, row.length), 0);
  const names = hasHeader ? table.all[0] : [];
  table.columns = Array.from({ length: width }, (_, at) => names[at] ?? (hasHeader ? "" : `column ${at + 1}`));
  $("header").checked = hasHeader;
  $("delimiter").value = table.delimiter;
  $("file-name").textContent = table.file.name;
  const encoding = table.encoding === "utf-8" ? "" : `, ${table.encoding}`;
  $("file-facts").textContent = `${counted(table.rows.length, "row")}, ${counted(width, "column")}${encoding}`;
  table.picked = null;
  offerColumns();
}

/** Offer the columns of the file; those that the models read are chosen, else the one of the longest texts. */
function offerColumns() {
  const known = new Set(knownColumns());
  let picked = table.picked ?? new Set([...table.columns.keys()].filter((at) => known.has(table.columns[at])));
  if (!picked.size) picked = new Set([longestColumn()]);
  $("columns").querySelector(".choices").replaceChildren(...table.columns.map((column, at) => {
    const box = make("input", { type: "checkbox", value: at, checked: picked.has(at) });
    const sample = (table.rows[0]?.[at] ?? "").slice(0, 80);
    return choice(box, name(column || `column ${at + 1}`), " ", make("small", { dir: "auto", lang: "" }, sample));
  }));
}
$("columns").addEventListener("change", () => {
  table.picked = new Set([...$("columns").querySelectorAll("input:checked")].map((box) => Number(box.value)));
});

function longestColumn() {
  const first = table.rows.slice(0, 100);
  const sums = table.columns.map((_, at) => first.reduce((sum, row) => sum + (row[at] ?? "").length, 0));
  return sums.indexOf(Math.max(...sums));
}

function dropFile() {
  table = null;
  $("file").value = "";
  $("filing").hidden = true;
  $("typing").hidden = false;
}

$("file").addEventListener("change", () => $("file").files.length && takeFile($("file").files[0]));
$("drop-file").addEventListener("click", () => {
  dropFile();
  $("file").focus();
});
$("delimiter").addEventListener("change", () => {
  takeFile(table.file, { encoding: table.encoding, delimiter: $("delimiter").value });
});
$("header").addEventListener("change", () => useHeader($("header").checked));
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.toggle("dropping", kind === "dragover");
    const [file] = kind === "drop" ? event.dataTransfer.files : [];
    if (file && !$("ask").hidden) takeFile(file);
  });
}

// --- classifying

/** What is to be classified, by what the form says. Throws an Error with a sentence where that is nothing. */
function newJob() {
  const chosen = chosenModels();
  if (!chosen.length) throw new Error("Choose a model.");
  const promise = {};
  if ($("abstain").value) promise.abstain = Number($("abstain").value);
  if ($("off-topic").checked && !$("off-topic").disabled) promise.off_topic = OFF_TOPIC;
  const whole = Object.keys(promise).length ? { ...limits.promise, ...promise } : {}; // the rest is the server's
  const found = { results: [], rules: new Map(), mixes: new Map(), cut: new Map() };
  const asked = { models: chosen, promise: whole, size: 16, ...found };
  if (!table) {
    const typed = $("text").value;
    const isArticle = document.querySelector("[name=split]:checked").value === "whole";
    const texts = (isArticle ? [typed] : typed.split(/\r\n|[\n\r]/)).map((text) => text.trim()).filter(Boolean);
    if (!texts.length) throw new Error("There is no text yet. Type or paste one, or choose a file.");
    const written = { name: "texts.csv", columns: ["text"], hasHeader: true, delimiter: ",", hasMark: false };
    return { ...asked, ...written, rows: texts.map((text) => [text]), textOf: ([text]) => text };
  }
  if (!table.rows.length) throw new Error("The file has no row below the names of its columns.");
  const picked = [...$("columns").querySelectorAll("input:checked")].map((box) => Number(box.value));
  if (!picked.length) throw new Error("Choose the column of the texts.");
  const names = picked.map((at) => table.columns[at]);
  const known = new Set(knownColumns());
  const areKnown = known.size === names.length && names.every((column) => known.delete(column));
  const textOf = areKnown // as the run makes a text of its columns; else, they are joined
    ? (row) => Object.fromEntries(picked.map((at) => [table.columns[at], row[at] ?? ""]))
    : (row) => picked.map((at) => row[at] ?? "").filter(Boolean).join(" ");
  return { ...asked, ...table, name: table.file.name, textOf };
}

/** A text as JSON can carry it. */
const wellFormed = (text) => text.replace(/\p{Surrogate}/gu, "\ufffd");

/** What of the rows still to do goes into one request: [first row, payload]; those too long are left out. */
function nextBatch(work) {
  const most = Math.max(1, Math.min(work.size, Math.floor(limits.max_texts / work.models.length)));
  const batch = [];
  let bytes = 2000;
  for (let at = work.results.length; at < work.rows.length && batch.length < most; at += 1) {
    let text = work.textOf(work.rows[at]);
    text = typeof text === "string" ? wellFormed(text)
      : Object.fromEntries(Object.entries(text).map(([column, cell]) => [column, wellFormed(cell)]));
    const length = shownText(text).length;
    const tooLong = length > limits.max_characters && [...shownText(text)].length > limits.max_characters;
    const size = tooLong ? 0 : new Blob([JSON.stringify(text)]).size + 1;
    if (tooLong || size + 2000 > limits.max_body) {
      if (batch.length) break;
      return [at, null, `longer than the ${numbers.format(limits.max_characters)} characters that this server reads`];
    }
    bytes += size;
    if (bytes > limits.max_body) break;
    batch.push(text);
  }
  return [work.results.length, batch, ""];
}

const asking = (work) => ({ models: work.models.map((model) => model.id), ...work.promise });

/** Classify what is not classified yet, batch after batch; each as large as the server answers in a second. */
async function classify(work, signal) {
  while (work.results.length < work.rows.length) {
    let first, batch, problem;
    const begun = performance.now();
    try {
      const answer = await patiently(async () => {
        [first, batch, problem] = nextBatch(work);
        if (!batch) return null;
        return ask("v1/classify", { texts: batch, ...asking(work) }, signal).catch((error) => {
          if (error.kind === "overloaded") work.size = Math.max(1, work.size >> 1);
          throw error;
        });
      }, progress, signal);
      if (answer) keep(work, first, answer.results);
      else take(work, first, work.models.map(() => ({ label: null, reason: problem })));
      const seconds = (performance.now() - begun) / 1000;
      if (seconds < 0.7) work.size = Math.min(work.size * 2, limits.max_texts);
      if (seconds > 2) work.size = Math.max(1, work.size >> 1);
    } catch (error) {
      if (!(error instanceof Refused) || ![413, 504].includes(error.status)) throw error;
      if (batch.length > 1) work.size = batch.length >> 1;
      else if (work.rows.length === 1) throw error;
      else take(work, first, work.models.map(() => ({ label: null, reason: `refused: ${error.message}` })));
    }
    drawSummary(work);
    const done = work.results.length;
    progress(`${numbers.format(done)} of ${counted(work.rows.length, "text")}`, done / work.rows.length);
    await breathe();
  }
}

/** Keep what an answer says of each of its texts, and of all: what is promised, and how many were cut. */
function keep(work, first, results) {
  for (const at of results[0].predictions.keys()) {
    take(work, first + at, results.map((result) => result.predictions[at]));
  }
  for (const { model, rule, truncation } of results) {
    work.rules.set(model, rule);
    work.cut.set(model, (work.cut.get(model) ?? 0) + (truncation?.cut ?? 0));
  }
}

/** Keep what the models said of a row, count it, and show it if it is one of the first. */
function take(work, at, predictions) {
  work.results[at] = predictions.map(cellsOf);
  for (const [place, said] of predictions.entries()) {
    const id = work.models[place].id;
    if (!work.mixes.has(id)) work.mixes.set(id, new Map());
    const mix = work.mixes.get(id);
    const labels = said.labels ?? (said.label === null || said.labels === null ? [""] : [said.label]);
    for (const label of labels.length ? labels : ["no label"]) mix.set(label, (mix.get(label) ?? 0) + 1);
  }
  if (at < SHOWN) $("list").append(resultOf(work, at, predictions, () => explained(work, at)));
}

/** What the models say of which words of a row decided; null where they do not, which is then said. */
async function explained(work, at) {
  trouble("");
  try {
    const body = { texts: [work.textOf(work.rows[at])], explain: true, ...asking(work) };
    return (await patiently(() => ask("v1/classify", body), progress)).results;
  } catch (error) {
    await explainTrouble(error);
    return null;
  } finally {
    if (!stopping) progress("");
  }
}

let stopping = null; // what stops the work in progress

async function run(work) {
  trouble("");
  job = work;
  stopping = new AbortController();
  busy(true);
  try {
    await classify(work, stopping.signal);
    say(`${counted(work.rows.length, "text")} classified.`);
  } catch (error) {
    const done = work.results.length;
    say(done ? `${counted(done, "text")} classified, ${numbers.format(work.rows.length - done)} not yet.` : "");
    await explainTrouble(error);
  } finally {
    stopping = null;
    progress("");
    drawSummary(work);
    busy(false);
  }
}

function busy(isBusy) {
  $("go").ariaDisabled = isBusy;
  if (document.activeElement === $("cancel")) $("go").focus();
  $("cancel").hidden = !isBusy;
  $("list").setAttribute("aria-busy", isBusy);
  if (!isBusy) return;
  progress("Asking the server", 0);
  if ($("results").getBoundingClientRect().top > 0.8 * innerHeight) $("results").scrollIntoView();
}

function submitted(event) {
  event?.preventDefault();
  if (stopping) return;
  try {
    const work = newJob();
    $("list").replaceChildren();
    $("list").className = isLong(work) ? "quotes many" : "quotes";
    $("summary").replaceChildren();
    $("beyond").hidden = work.rows.length <= SHOWN;
    $("beyond").textContent = `The page shows the first ${SHOWN}; the download has all.`;
    say("");
    run(work);
  } catch (error) {
    trouble(error.message);
    if (!table) $("text").focus();
  }
}
$("ask").addEventListener("submit", submitted);
$("cancel").addEventListener("click", () => stopping?.abort());
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !$("ask").hidden) submitted(event);
});

// --- the summary and the download

/** What each model promises, how its labels spread, and the download, of all that is classified so far. */
function drawSummary(work) {
  if (!work.results.length) return;
  const mixes = work.models.map((model) => mixOf(work, model)).filter(Boolean);
  $("summary").replaceChildren(...mixes, downloadOf(work));
}

function downloadOf(work) {
  const isWhole = work.results.length === work.rows.length;
  const what = isWhole ? "Download the results" : `Download the first ${numbers.format(work.results.length)}`;
  const button = make("button", { type: "button", id: "download" }, what);
  button.disabled = stopping !== null;
  button.addEventListener("click", () => download(work));
  const parts = [button];
  if (!isWhole && !stopping) {
    const on = make("button", { type: "button", id: "resume" }, "Go on");
    on.addEventListener("click", () => run(work));
    parts.push(on);
  }
  if (!stopping && (work.formulas ??= work.rows.some((row) => row.some(isFormula)))) {
    const box = make("input", { type: "checkbox", checked: work.harmless ?? false });
    box.addEventListener("change", () => { work.harmless = box.checked; });
    parts.push(choice(box, "Put an apostrophe before cells that a spreadsheet would compute (= + - @). ",
      "Otherwise all cells stay as they are."));
  }
  return make("div", { className: "buttons" }, ...parts);
}

begin();

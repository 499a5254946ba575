// The page of `newsdesk serve`. Whatever comes from a person, a file or the server is put into it as text
// nodes only; the page's policy forbids the browser to read any string as HTML.

const SHOWN = 300; // results on the page; the download has all
const OPEN = 12; // up to so many, every result shows its probabilities at once
const EXCERPT = 600; // characters of a text that are shown
const LARGEST_FILE = 200e6; // bytes
const CANDIDATES = 4; // named beside “not sure”
const OFF_TOPIC = 0.05; // the share of calibration texts that are as untypical
const MARKED_FROM = 0.15; // of the weightiest word's weight, as in the report
const PATIENCE = 60; // seconds in a row for which a server that is not there is asked again

const WAITS = {
  0: "The server does not answer.",
  429: "The server is busy.",
  502: "The server is not there.",
  503: "The server is not ready.",
}; // what is worth asking again for, by status; 0: it cannot be reached

const $ = (id) => document.getElementById(id);
const numbers = new Intl.NumberFormat("en");
const counted = (count, noun) => `${numbers.format(count)} ${noun}${count === 1 ? "" : "s"}`;
const breathe = () => new Promise((done) => setTimeout(done));

let token = sessionStorage.getItem("newsdesk-token") ?? "";
let limits = null; // what /v1/limits says
let models = []; // what /v1/models says
let table = null; // the file that was chosen
let job = null; // what is, or was, classified

/** An element with properties and children; strings become text nodes. */
function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter((child) => child !== null && child !== ""));
  return made;
}

/** A name from a model or a file, which keeps its own direction. */
const name = (text) => make("bdi", { lang: "" }, text);

/** A probability in percent; never rounded to certainty. */
function chance(probability) {
  if (probability < 0.0005) return "under 0.1 %";
  return probability >= 0.9995 ? "over 99.9 %" : `${(100 * probability).toFixed(1)} %`;
}

const percent = (share) => `${+(100 * share).toFixed(2)} %`;

// --- the server

/** Why the server gave no answer: its status (0: it cannot be reached), kind, sentence, seconds to wait. */
class Refused extends Error {
  constructor(status, kind, message, wait) {
    super(message);
    Object.assign(this, { status, kind, wait });
  }

  /** One sentence for whoever reads the page, with what to do. */
  get sentence() {
    const said = this.message.charAt(0).toUpperCase() + this.message.slice(1);
    switch (this.status) {
      case 0: return "The server does not answer. See whether it still runs, then try again: nothing here is lost.";
      case 401: return token
        ? "The server does not know this token. Check it, or ask for a new one."
        : "This server answers only with a token. Enter yours above.";
      case 403: return `The server refuses: ${this.message}.`;
      case 404: return `${said}. Choose one of the models that are listed now.`;
      case 413: return `${said}. Send shorter texts.`;
      case 429: return "The server has too much to do. Try again in a minute.";
      case 502: case 503: return "The server is not ready, or is stopping. Try again in a minute.";
      case 504: return "The server needs longer for a text than it may. Shorten the text, or ask one model at a time.";
      case 408: case 422: return `${said}.`;
      default: return "The server failed at this. Its log says why.";
    }
  }
}

/** The JSON that a path answers; of a body, to POST. Throws Refused, and AbortError once `signal` says so. */
async function ask(path, body, signal) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const options = { headers, signal, cache: "no-store" };
  if (body) Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  if (body) headers["Content-Type"] = "application/json";
  let response, content;
  try {
    response = await fetch(path, options);
    content = await response.json();
  } catch (error) {
    if (signal?.aborted) throw error;
    if (!response || response.ok) throw new Refused(0, "unreachable", "");
    content = {};
  }
  if (response.ok) return content;
  const wait = Number(response.headers.get("Retry-After")) || 1;
  throw new Refused(response.status, content.kind ?? "", content.error ?? "it gave no reason", wait);
}

/** Wait a second; throws AbortError once `signal` says so. */
function aSecond(signal) {
  return new Promise((done, failed) => {
    const stop = () => {
      clearTimeout(timer);
      failed(signal.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      done();
    }, 1000);
    signal?.addEventListener("abort", stop);
  });
}

/** Call `work` until it is answered: a server that is busy, or not ready, is asked again in a while. */
async function patiently(work, signal) {
  for (let waited = 0; ;) {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof Refused) || !(error.status in WAITS)) throw error;
      if (error.status !== 429 && waited >= PATIENCE) throw error;
      const seconds = error.status === 0 ? 2 : Math.ceil(error.wait);
      for (let left = seconds; left > 0; left -= 1) {
        progress(`${WAITS[error.status]} This page asks again in ${left} s.`);
        await aSecond(signal);
      }
      waited += seconds;
    }
  }
}

/** Say what went wrong, and let people do something about it. */
async function explainTrouble(error) {
  if (error.name === "AbortError") return;
  if (!(error instanceof Refused)) throw error;
  trouble(error.sentence);
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
  token = $("token").value.trim();
  if ($("keep-token").checked) sessionStorage.setItem("newsdesk-token", token);
  else sessionStorage.removeItem("newsdesk-token");
  begin();
});

/** Learn what the server may be asked. */
async function begin() {
  trouble("");
  try {
    limits = await patiently(() => ask("v1/limits"));
    const wrong = limits.promise.abstain;
    $("abstain").options[0].textContent = wrong ? `at most ${percent(wrong)}, as the server was told` : "any number: answer every text";
    showModels((await ask("v1/models")).data);
    $("token-form").hidden = true;
    $("ask").hidden = false;
  } catch (error) {
    if (error.status === 401 && !token) askForToken();
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
    const facts = make("small", {}, `${counted(model.labels.length, "label")}${model.task === "multi" ? ", several a text" : ""}`);
    return make("label", { className: "choice" }, box, make("span", {}, name(model.id), " ", facts));
  });
  $("models").hidden = found.length === 1;
  $("models").firstElementChild.textContent = "Models, one or several side by side";
  $("models").querySelector(".choices").replaceChildren(...choices);
  modelsChosen();
}

function chosenModels() {
  const ids = new Set([...$("models").querySelectorAll("input:checked")].map((box) => box.value));
  return models.filter((model) => ids.has(model.id));
}

/** Say what the chosen models know, as long as there are no results. */
function modelsChosen() {
  const chosen = chosenModels();
  $("off-topic").disabled = !chosen.every((model) => model.has_off_topic_score);
  if (table) offerColumns();
  if (job) return;
  say("");
  $("summary").replaceChildren(...chosen.map((model) => {
    const labels = model.labels.slice(0, 40).map((label) => make("li", {}, name(label)));
    if (model.labels.length > 40) labels.push(make("li", { className: "more" }, `and ${model.labels.length - 40} more`));
    const what = model.task === "multi" ? "gives each text all that fit of" : "gives each text one of";
    return make("div", { className: "knows" },
      make("p", {}, make("strong", {}, name(model.id)), ` ${what} ${counted(model.labels.length, "label")}:`),
      make("ul", { className: "chips" }, ...labels));
  }));
}
$("models").addEventListener("change", modelsChosen);

// --- files

/** Reads csv (RFC 4180) piece by piece: quoted cells, any line ends; without a delimiter, a cell a line. */
class CsvReader {
  constructor(delimiter) {
    this.delimiter = delimiter;
    this.rows = [];
    this.row = [];
    this.cell = "";
    this.state = "start"; // of a cell; or in a "plain" or "quoted" one, or at a "quote" that may end it
    this.returned = false; // whether the last letter was a carriage return
  }

  write(text) {
    let from = 0; // what of the cell is not taken yet begins here
    for (let at = 0; at < text.length; at += 1) {
      if (this.state === "quoted") {
        const quote = text.indexOf('"', at);
        if (quote < 0) break;
        this.cell += text.slice(from, quote);
        from = quote + 1;
        at = quote;
        this.state = "quote";
        continue;
      }
      const letter = text[at];
      const ends = letter === "\n" || letter === "\r";
      if (letter === "\n" && this.returned) {
        from = at + 1;
      } else if (ends || letter === this.delimiter) {
        this.row.push(this.cell + text.slice(from, at));
        from = at + 1;
        this.cell = "";
        this.state = "start";
        if (ends) this.endRow();
      } else if (letter === '"' && this.state !== "plain" && this.delimiter) {
        if (this.state === "start") from = at + 1; // of two quotes within quotes, the second belongs to the cell
        this.state = "quoted";
      } else {
        this.state = "plain";
      }
      this.returned = letter === "\r";
    }
    this.cell += text.slice(from);
  }

  endRow() {
    if (this.row.length > 1 || this.row[0] !== "") this.rows.push(this.row);
    this.row = [];
  }

  /** All rows. Throws an Error where a quotation mark is not closed. */
  end() {
    if (this.state === "quoted") throw new Error(`a quotation mark after row ${numbers.format(this.rows.length)} is never closed`);
    this.row.push(this.cell);
    this.endRow();
    return this.rows;
  }
}

/** The delimiter that most rows of a sample have equally often; "" where none has most. */
function likeliestDelimiter(sample) {
  let best = { share: 0.6, width: 1, delimiter: "" };
  for (const delimiter of [",", ";", "\t", "|"]) {
    const reader = new CsvReader(delimiter);
    reader.write(sample);
    const rows = reader.rows.length ? reader.rows : [[...reader.row, reader.cell]];
    const widths = rows.map((row) => row.length);
    const width = widths.slice().sort((a, b) => a - b)[widths.length >> 1];
    const share = widths.filter((each) => each === width).length / widths.length;
    if (width > 1 && (share > best.share || (share === best.share && width > best.width))) best = { share, width, delimiter };
  }
  return best.delimiter;
}

/** The text of a file in pieces; UTF-16 by its mark, else UTF-8, and Windows-1252 for what is neither. */
async function* piecesOf(file, encoding) {
  const reader = file.stream().pipeThrough(new TextDecoderStream(encoding, { fatal: true })).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    yield value;
  }
}

async function encodingOf(file) {
  const [first, second] = new Uint8Array(await file.slice(0, 2).arrayBuffer());
  if (first === 0xff && second === 0xfe) return "utf-16le";
  if (first === 0xfe && second === 0xff) return "utf-16be";
  try {
    for await (const piece of piecesOf(file, "utf-8")) void piece;
    return "utf-8";
  } catch {
    return "windows-1252";
  }
}

/** Read a file, and offer its columns. */
async function takeFile(file, asked = {}) {
  trouble("");
  try {
    if (file.size > LARGEST_FILE) {
      throw new Error(`it is larger than ${LARGEST_FILE / 1e6} MB, which newsdesk predict reads and a browser does not`);
    }
    const encoding = asked.encoding ?? await encodingOf(file);
    let reader = null;
    for await (const piece of piecesOf(file, encoding)) {
      reader ??= new CsvReader(asked.delimiter ?? (/\.txt$/i.test(file.name) ? "" : likeliestDelimiter(piece)));
      reader.write(piece);
      progress(`Reading: ${counted(reader.rows.length, "row")}`);
      await breathe();
    }
    const rows = reader?.end() ?? [];
    if (!rows.length) throw new Error("it is empty");
    const mark = new Uint8Array(await file.slice(0, 3).arrayBuffer());
    const hasMark = encoding.startsWith("utf-16") || (mark[0] === 0xef && mark[1] === 0xbb && mark[2] === 0xbf);
    table = { file, encoding, hasMark, all: rows, delimiter: reader.delimiter };
    useHeader(asked.header ?? looksLikeHeader(rows, reader.delimiter));
    $("typing").hidden = true;
    $("filing").hidden = false;
  } catch (error) {
    trouble(`The file ${file.name} cannot be used: ${error.message}.`);
    if (asked.delimiter === undefined) dropFile();
  }
  progress("");
}

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
  table.columns = Array.from({ length: width }, (_, at) => hasHeader ? table.all[0][at] ?? "" : `column ${at + 1}`);
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
    return make("label", { className: "choice" }, box,
      make("span", {}, name(column || `column ${at + 1}`), " ", make("small", { dir: "auto", lang: "" }, sample)));
  }));
}
$("columns").addEventListener("change", () => {
  table.picked = new Set([...$("columns").querySelectorAll("input:checked")].map((box) => Number(box.value)));
});

function longestColumn() {
  const sums = table.columns.map((_, at) => table.rows.slice(0, 100).reduce((sum, row) => sum + (row[at] ?? "").length, 0));
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
$("delimiter").addEventListener("change", () => takeFile(table.file, { ...table, delimiter: $("delimiter").value, header: undefined }));
$("header").addEventListener("change", () => useHeader($("header").checked));
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.toggle("dropping", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length && !$("ask").hidden) takeFile(event.dataTransfer.files[0]);
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
  const asked = { models: chosen, promise, results: [], rules: new Map(), mixes: new Map(), cut: new Map(), size: 16 };
  if (!table) {
    const typed = $("text").value;
    const whole = document.querySelector("[name=split]:checked").value === "whole";
    const texts = (whole ? [typed] : typed.split(/\r\n|[\n\r]/)).map((text) => text.trim()).filter(Boolean);
    if (!texts.length) throw new Error("There is no text yet. Type or paste one, or choose a file.");
    const written = { name: "texts.csv", columns: ["text"], hasHeader: true, delimiter: ",", hasMark: false };
    return { ...asked, ...written, rows: texts.map((text) => [text]), textOf: ([text]) => text };
  }
  if (!table.rows.length) throw new Error("The file has no row below the names of its columns.");
  const picked = [...$("columns").querySelectorAll("input:checked")].map((box) => Number(box.value));
  if (!picked.length) throw new Error("Choose the column of the texts.");
  const names = picked.map((at) => table.columns[at]);
  const read = chosen.every((model) => model.text_columns.every((column) => names.includes(column)));
  const fits = read && names.every((column) => knownColumns().includes(column)) && new Set(names).size === names.length;
  const textOf = fits // as the run makes a text of its columns; else, they are joined
    ? (row) => Object.fromEntries(picked.map((at) => [table.columns[at], row[at] ?? ""]))
    : (row) => picked.map((at) => row[at] ?? "").filter(Boolean).join(" ");
  return { ...asked, ...table, name: table.file.name, textOf };
}

/** The text of a row for people. */
const shownText = (text) => typeof text === "string" ? text : Object.values(text).filter(Boolean).join("\n");

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
      if (!batch.length) return [at, null, `longer than the ${numbers.format(limits.max_characters)} characters that this server reads`];
      break;
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
      }, signal);
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
    progress(`${numbers.format(work.results.length)} of ${counted(work.rows.length, "text")}`, work.results.length / work.rows.length);
    await breathe();
  }
}

/** Keep what an answer says of each of its texts, and of all: what is promised, and how many were cut. */
function keep(work, first, results) {
  for (const at of results[0].predictions.keys()) take(work, first + at, results.map((result) => result.predictions[at]));
  for (const { model, rule, truncation } of results) {
    work.rules.set(model, rule);
    work.cut.set(model, (work.cut.get(model) ?? 0) + (truncation?.cut ?? 0));
  }
}

/** What the download says of a text, by column, as `newsdesk predict` writes it. */
function cellsOf(said) {
  const { reason, off_topic } = said;
  const list = (values) => values && JSON.stringify(values);
  if (said.labels === undefined) {
    return { label: said.label, probability: said.probability, candidates: list(said.candidates), reason, off_topic };
  }
  const probabilities = said.labels?.map((label) => said.probabilities[label]);
  return { labels: list(said.labels), probabilities: list(probabilities), unsure: list(said.unsure), reason, off_topic };
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
  if (at < SHOWN) $("list").append(resultOf(work, at, predictions));
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
    const left = work.rows.length - work.results.length;
    say(work.results.length ? `${counted(work.results.length, "text")} classified, ${numbers.format(left)} not yet.` : "");
    await explainTrouble(error);
  } finally {
    stopping = null;
    progress("");
    drawSummary(work);
    busy(false);
  }
}

function busy(isBusy) {
  $("go").disabled = isBusy;
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
$("cancel").addEventListener("click", () => {
  stopping?.abort();
  $("go").focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !$("ask").hidden) submitted(event);
});

// --- results

/** Whether there are so many results that each shows its probabilities only when asked. */
const isLong = (work) => work.rows.length * work.models.length > OPEN;

/** Whether a model read the text: one that says nothing, or was not sent, has no probabilities worth a look. */
const isRead = (said) => said.probabilities && (!said.reason || said.reason === "off topic" || said.reason.startsWith("confidence"));

/** What the models say of one row. */
function resultOf(work, at, predictions) {
  const text = work.textOf(work.rows[at]);
  const shown = shownText(text);
  const quote = make("blockquote", { dir: "auto", lang: "" }, shown.slice(0, EXCERPT) + (shown.length > EXCERPT ? "…" : ""));
  const several = work.models.length > 1;
  const made = make("li", { className: "quote", value: at + 1 }, quote, make("div", { className: "verdicts" }, ...predictions.map((said, place) =>
    make("div", { className: "said" }, several ? make("p", { className: "by" }, name(work.models[place].id)) : null,
      answerOf(said), ...(isLong(work) || !isRead(said) ? [] : detailsOf(said))))));
  if (!predictions.some(isRead)) return made;
  if (!isLong(work)) made.append(...explainer(work, text));
  else made.append(unfolding("Details", () => [
    make("div", { className: "verdicts" }, ...predictions.map((said, place) => make("div", { className: "said" },
      several ? make("p", { className: "by" }, name(work.models[place].id)) : null, ...(isRead(said) ? detailsOf(said) : [])))),
    ...explainer(work, text)]));
  return made;
}

/** Details whose content is made when they are opened for the first time. */
function unfolding(title, content) {
  const details = make("details", {}, make("summary", {}, title));
  details.addEventListener("toggle", () => details.open && details.children.length === 1 && details.append(...content()));
  return details;
}

/** How probable the labels are, and whether the text may be off topic. */
function detailsOf(said) {
  const ranked = Object.entries(said.probabilities).sort((a, b) => b[1] - a[1]);
  const few = ranked.length <= 5 ? ranked.length : Math.max(4, (said.labels?.length ?? 0) + (said.unsure?.length ?? 0) + 1);
  const parts = [barsOf(ranked.slice(0, few))];
  if (ranked.length > few) parts.push(unfolding(`All ${ranked.length} probabilities`, () => [barsOf(ranked)]));
  if (said.off_topic !== undefined && said.off_topic <= OFF_TOPIC) {
    parts.unshift(make("p", { className: "note" }, `${said.reason === "off topic" ? "Only" : "Perhaps off topic: only"} ${chance(said.off_topic)} of the calibration texts are as untypical.`));
  }
  return parts;
}

/** The label or labels, or that there is no answer and what is known instead. */
function answerOf(said) {
  const labelled = (label, kind) => make("span", { className: kind }, name(label), " ",
    make("span", { className: "chance" }, chance(said.probabilities[label])));
  const badge = (text, ...more) => make("p", { className: "answer" }, make("span", { className: "badge" }, text), ...more);
  const some = (labels) => [...labels.slice(0, CANDIDATES).map((label) => labelled(label, "unsure")),
    labels.length > CANDIDATES ? `or one of ${labels.length - CANDIDATES} more` : ""];
  if (said.labels) {
    const unsure = said.unsure?.length ? some(said.unsure) : [];
    const sure = said.labels.map((label) => labelled(label, "label"));
    if (!sure.length && !unsure.length) return badge("No label", " is likely enough");
    return make("p", { className: "answer" }, ...sure, unsure.length ? make("span", { className: "badge" }, "Not sure") : null, ...unsure);
  }
  if (said.label) return make("p", { className: "answer" }, labelled(said.label, "label"));
  if (said.reason === "off topic") return badge("Off topic", " unlike the texts that the model knows");
  if (!isRead(said)) return badge("No answer", ` ${said.reason ?? ""}`);
  return badge("Not sure", ...(said.candidates?.length ? [" perhaps ", ...some(said.candidates)] : []));
}

/** Bars of labels with their probabilities. */
function barsOf(entries) {
  return make("ul", { className: "bars" }, ...entries.map(([label, probability]) =>
    make("li", {}, name(label), bar(probability), make("span", { className: "chance" }, chance(probability)))));
}

function bar(share, kind = "") {
  const made = make("span", { className: `bar${kind}`, ariaHidden: "true" });
  made.style.setProperty("--share", share);
  return made;
}

// --- which words decided

/** A button that asks which words decided, and where they will be shown. */
function explainer(work, text) {
  const place = make("div", { className: "explained" });
  const button = make("button", { type: "button", className: "quiet" }, "Which words decided?");
  button.addEventListener("click", () => explain(work, text, place, button));
  return [place, button];
}

async function explain(work, text, place, button) {
  if (place.hasChildNodes()) {
    place.replaceChildren();
    button.textContent = "Which words decided?";
    return;
  }
  button.disabled = true;
  button.textContent = "Leaving out one word after the other …";
  try {
    const body = { texts: [text], explain: true, ...asking(work) };
    const { results } = await patiently(() => ask("v1/classify", body));
    place.replaceChildren(...results.map((result) => explanationOf(result.model, result.explanations[0], results.length > 1)));
    button.textContent = "Hide the words";
  } catch (error) {
    button.textContent = "Which words decided?";
    explainTrouble(error);
  }
  if (!stopping) progress("");
  button.disabled = false;
  button.focus();
}

/** A text with its words marked by what they did for the label, and the weightiest of them. */
function explanationOf(model, found, several) {
  const letters = [...found.text]; // the server counts characters, not UTF-16 units
  const heaviest = Math.max(0, ...found.words.map((word) => Math.abs(word.weight)));
  const quote = make("blockquote", { dir: "auto", lang: found.language ?? "" });
  let position = 0;
  for (const word of found.words) {
    const weight = Math.abs(word.weight);
    if (!heaviest || weight < MARKED_FROM * heaviest) continue;
    quote.append(letters.slice(position, word.start).join(""));
    const strength = Math.min(3, 1 + Math.floor(3 * weight / heaviest));
    quote.append(make("mark", { className: `${word.weight > 0 ? "for" : "against"} strength-${strength}` }, word.text));
    position = word.end;
  }
  quote.append(letters.slice(position).join(""));
  const spoke = (title, sign) => {
    const words = found.words.filter((word) => sign * word.weight > 0 && Math.abs(word.weight) >= MARKED_FROM * heaviest)
      .sort((a, b) => sign * (b.weight - a.weight)).slice(0, 5);
    if (!words.length) return null;
    return make("span", {}, make("b", {}, ...title, ":"), " ", ...words.flatMap((word, at) => [
      at ? ", " : "", name(word.text), `\u00a0${word.weight < 0 ? "−" : "+"}${Math.abs(word.weight).toFixed(2)}`]));
  };
  const words = found.reason ? make("p", { className: "note" }, `There is nothing to explain: ${found.reason}.`)
    : make("p", { className: "words" }, spoke(["For ", name(found.target)], 1), spoke(["Against it"], -1),
      make("span", {}, "in log-odds: 0.69 doubles the odds"));
  const unread = found.tokens_lost ? make("p", { className: "note" }, `${counted(found.tokens_lost, "token")} at the end of ${numbers.format(found.tokens)} are not read.`) : null;
  return make("div", {}, several ? make("p", { className: "by" }, name(model)) : null, quote, words, unread);
}

// --- the summary and the download

/** What each model promises, how its labels spread, and the download, of all that is classified so far. */
function drawSummary(work) {
  if (!work.results.length) return;
  $("summary").replaceChildren(...work.models.map((model) => mixOf(work, model)).filter(Boolean), downloadOf(work));
}

function mixOf(work, model) {
  const parts = [];
  if (work.results.length > 3) {
    const ranked = [...work.mixes.get(model.id)].sort((a, b) => b[1] - a[1]);
    const shown = ranked.length > 12 ? ranked.slice(0, 11) : ranked;
    parts.push(make("ul", { className: "bars" }, ...shown.map(([label, count]) => make("li", {},
      label ? name(label) : make("em", {}, "not answered"), bar(count / work.results.length, label ? "" : " none"),
      make("span", { className: "chance" }, numbers.format(count))))));
    if (ranked.length > shown.length) parts.push(make("p", { className: "note" }, `and ${counted(ranked.length - shown.length, "label")} more`));
  }
  const promise = work.rules.get(model.id)?.promise;
  const what = model.task === "multi" ? "assigned labels" : "answers";
  if (promise) parts.push(make("p", { className: "note" }, `At most ${percent(promise.error_rate)} of its ${what} are wrong, with ${percent(promise.confidence)} confidence, for texts like those that it was calibrated on.`));
  const cut = work.cut.get(model.id);
  if (cut) parts.push(make("p", { className: "note" }, `Of ${counted(cut, "text")} it read only a part: they have more than ${numbers.format(model.max_length)} tokens.`));
  if (!parts.length) return null;
  return make("div", { className: "mix" }, make("h3", {}, name(model.id)), ...parts);
}

const isFormula = (cell) => /^[=+\-@\t\r]/.test(cell) && Number.isNaN(Number(cell));

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
    parts.push(make("label", { className: "choice" }, box, make("span", {}, "Put an apostrophe before cells that a spreadsheet would compute (= + - @). Otherwise all cells stay as they are.")));
  }
  return make("div", { className: "buttons" }, ...parts);
}

/** The rows as they came, with what each model says of them in columns behind. */
async function download(work) {
  const answered = [];
  const kinds = ["label", "labels", "probability", "probabilities", "unsure", "candidates", "reason", "off_topic"];
  for (const [place, model] of work.models.entries()) {
    for (const kind of kinds) {
      const isSaid = work.results.some((said) => said[place][kind] !== undefined && said[place][kind] !== null);
      if (!isSaid && kind !== (model.task === "multi" ? "labels" : "label")) continue;
      let column = work.models.length > 1 ? `${model.id} ${kind}` : kind;
      while (work.columns.includes(column) || answered.some((each) => each.column === column)) column = `predicted_${column}`;
      answered.push({ column, place, kind });
    }
  }
  const delimiter = work.delimiter || ",";
  const special = new RegExp(`[${delimiter === "|" ? "\\|" : delimiter}"\\r\\n]`);
  const written = (cell) => {
    const text = work.harmless && isFormula(cell) ? `'${cell}` : cell;
    return special.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const line = (cells) => `${cells.map(written).join(delimiter)}\n`;
  const pieces = [work.hasMark ? "\ufeff" : ""];
  pieces.push(line([...work.columns, ...answered.map((each) => each.column)]));
  for (let from = 0; from < work.results.length; from += 2000) {
    const lines = work.results.slice(from, from + 2000).map((said, at) => {
      const row = work.rows[from + at];
      const cells = work.columns.map((_, place) => row[place] ?? "");
      return line([...cells, ...answered.map(({ place, kind }) => String(said[place][kind] ?? ""))]);
    });
    pieces.push(lines.join(""));
    await breathe();
  }
  const address = URL.createObjectURL(new Blob(pieces, { type: "text/csv" }));
  const [, stem, ending] = /^(.*?)(\.\w+)?$/.exec(work.name);
  make("a", { href: address, download: `${stem}-classified${ending === ".txt" ? ".csv" : ending ?? ".csv"}` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

begin();

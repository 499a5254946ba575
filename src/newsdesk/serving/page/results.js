// What the models say, for people. Whatever comes from a person, a file or the server becomes text nodes.

const OPEN = 12; // up to so many, every result shows its probabilities at once
const EXCERPT = 600; // characters of a text that are shown
const CANDIDATES = 4; // named beside “not sure”
export const OFF_TOPIC = 0.05; // the share of calibration texts that are as untypical
const MIXED = 12; // labels of which it is shown how many texts have them
const MARKED_FROM = 0.15; // of the weightiest word's weight, as in the report
const SPOKEN = 5; // words that are listed for a label, and against it
const ASKS = "Which words decided?";

export const numbers = new Intl.NumberFormat("en");
export const counted = (count, noun) => `${numbers.format(count)} ${noun}${count === 1 ? "" : "s"}`;

/** An element with properties and children; strings become text nodes. */
export function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter((child) => child !== null && child !== ""));
  return made;
}

/** A name from a model or a file, which keeps its own direction. */
export const name = (text) => make("bdi", { lang: "" }, text);

const note = (text) => make("p", { className: "note" }, text);

/** A probability in percent; never rounded to certainty. */
export function chance(probability) {
  if (probability < 0.0005) return "under 0.1 %";
  return probability >= 0.9995 ? "over 99.9 %" : `${(100 * probability).toFixed(1)} %`;
}

/** A share in percent, as short as it can be said. */
export const percent = (share) => `${+(100 * share).toFixed(2)} %`;

/** Whether there are so many results that each shows its probabilities only when asked. */
export const isLong = (work) => work.rows.length * work.models.length > OPEN;

/** Whether a model read the text: one that says nothing, or was not sent, has no probabilities worth a look. */
const isRead = ({ probabilities, reason }) =>
  probabilities && (!reason || reason === "off topic" || reason.startsWith("confidence"));

/** The text of a row for people: a text, or one of several columns. */
export const shownText = (text) => typeof text === "string" ? text : Object.values(text).filter(Boolean).join("\n");

/** What the models say of one row; `explained` finds their explanations of its text, or null. */
export function resultOf(work, at, predictions, explained) {
  const text = shownText(work.textOf(work.rows[at]));
  const excerpt = text.length > EXCERPT ? `${text.slice(0, EXCERPT)}…` : text;
  const ofAll = (content) => make("div", { className: "verdicts" }, ...predictions.map((said, place) =>
    make("div", { className: "said" }, work.models.length > 1 ? by(work.models[place].id) : null, ...content(said))));
  const details = (said) => isRead(said) ? detailsOf(said) : [];
  const quote = make("blockquote", { dir: "auto", lang: "" }, excerpt);
  const made = make("li", { className: "quote", value: at + 1 }, quote);
  const canExplain = predictions.some(isRead);
  if (!isLong(work)) {
    made.append(ofAll((said) => [answerOf(said), ...details(said)]), ...(canExplain ? explainer(explained) : []));
  } else {
    made.append(ofAll((said) => [answerOf(said)]));
    if (canExplain) made.append(unfolding("Details", () => [ofAll(details), ...explainer(explained)]));
  }
  return made;
}

const by = (model) => make("p", { className: "by" }, name(model));

/** Details whose content is made when they are opened for the first time. */
function unfolding(title, content) {
  const details = make("details", {}, make("summary", {}, title));
  details.addEventListener("toggle", () => {
    if (details.open && details.children.length === 1) details.append(...content());
  });
  return details;
}

/** How probable the labels are, and whether the text may be off topic. */
function detailsOf(said) {
  const ranked = Object.entries(said.probabilities).sort((a, b) => b[1] - a[1]);
  const given = (said.labels?.length ?? 0) + (said.unsure?.length ?? 0);
  const few = ranked.length <= 5 ? ranked.length : Math.max(4, given + 1);
  const parts = [barsOf(ranked.slice(0, few))];
  if (ranked.length > few) parts.push(unfolding(`All ${ranked.length} probabilities`, () => [barsOf(ranked)]));
  if (said.off_topic !== undefined && said.off_topic <= OFF_TOPIC) {
    const begins = said.reason === "off topic" ? "Only" : "Perhaps off topic: only";
    parts.unshift(note(`${begins} ${chance(said.off_topic)} of the calibration texts are as untypical.`));
  }
  return parts;
}

/** The label or labels, or that there is no answer and what is known instead. */
function answerOf(said) {
  const labelled = (label, kind) => make("span", { className: kind }, name(label), " ",
    make("span", { className: "chance" }, chance(said.probabilities[label])));
  const answer = (...parts) => make("p", { className: "answer" }, ...parts);
  const badge = (text) => make("span", { className: "badge" }, text);
  const some = (labels) => [...labels.slice(0, CANDIDATES).map((label) => labelled(label, "unsure")),
    labels.length > CANDIDATES ? `or one of ${labels.length - CANDIDATES} more` : ""];
  if (said.labels) {
    const unsure = said.unsure?.length ? some(said.unsure) : [];
    const sure = said.labels.map((label) => labelled(label, "label"));
    if (!sure.length && !unsure.length) return answer(badge("No label"), " is likely enough");
    return answer(...sure, unsure.length ? badge("Not sure") : null, ...unsure);
  }
  if (said.label) {
    const others = (said.candidates ?? []).filter((label) => label !== said.label);
    return answer(labelled(said.label, "label"), ...(others.length ? [" or ", ...some(others)] : []));
  }
  if (said.reason === "off topic") return answer(badge("Off topic"), " unlike the texts that the model knows");
  if (!isRead(said)) return answer(badge("No answer"), ` ${said.reason ?? ""}`);
  return answer(badge("Not sure"), ...(said.candidates?.length ? [" perhaps ", ...some(said.candidates)] : []));
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

/** A button that asks which words decided, and the place where they will be shown. */
function explainer(explained) {
  const place = make("div", { className: "explained" });
  const button = make("button", { type: "button", className: "quiet" }, ASKS);
  button.addEventListener("click", async () => {
    if (button.ariaBusy === "true") return;
    if (place.hasChildNodes()) {
      place.replaceChildren();
      button.textContent = ASKS;
      return;
    }
    button.ariaBusy = true;
    button.textContent = "Leaving out one word after the other …";
    const found = await explained();
    place.replaceChildren(...(found ?? []).map(({ model, explanations: [explanation] }) =>
      make("div", {}, found.length > 1 ? by(model) : null, ...explanationOf(explanation))));
    button.textContent = found ? "Hide the words" : ASKS;
    button.ariaBusy = false;
  });
  return [place, button];
}

/** A text with its words marked by what they did for the label, and the weightiest of them. */
function explanationOf({ text, words, target, language, reason, tokens, tokens_lost: lost }) {
  const heaviest = Math.max(0, ...words.map(({ weight }) => Math.abs(weight)));
  const marked = words.filter(({ weight }) => heaviest && Math.abs(weight) >= MARKED_FROM * heaviest);
  const letters = [...text]; // the server counts characters, not UTF-16 units
  const quote = make("blockquote", { dir: "auto", lang: language ?? "" });
  let position = 0;
  for (const { start, end, weight, text: word } of marked) {
    const strength = Math.min(3, 1 + Math.floor(3 * Math.abs(weight) / heaviest));
    const className = `${weight > 0 ? "for" : "against"} strength-${strength}`;
    quote.append(letters.slice(position, start).join(""), make("mark", { className }, word));
    position = end;
  }
  quote.append(letters.slice(position).join(""));
  const parts = [quote];
  if (reason) parts.push(note(`There is nothing to explain: ${reason}.`));
  else {
    const sides = [spoke(marked, 1, "For ", name(target)), spoke(marked, -1, "Against it")];
    parts.push(make("p", { className: "words" }, ...sides, make("span", {}, "in log-odds: 0.69 doubles the odds")));
  }
  if (lost) parts.push(note(`Of its ${counted(tokens, "token")} the last ${numbers.format(lost)} are not read.`));
  return parts;
}

/** The words that spoke for the label (`sign` 1) or against it (-1), the weightiest first. */
function spoke(words, sign, ...title) {
  const found = words.filter(({ weight }) => sign * weight > 0).sort((a, b) => sign * (b.weight - a.weight));
  if (!found.length) return null;
  const listed = found.slice(0, SPOKEN).flatMap(({ text, weight }, at) => [
    at ? ", " : "", name(text), `\u00a0${weight < 0 ? "−" : "+"}${Math.abs(weight).toFixed(2)}`]);
  return make("span", {}, make("b", {}, ...title, ":"), " ", ...listed);
}

/** How a model's labels spread over all texts so far, and what is promised of them; null: nothing to say. */
export function mixOf(work, model) {
  const parts = [];
  if (work.results.length > 3) parts.push(...spreadOf(work, model));
  const { promise, coverage } = work.rules.get(model.id) ?? {};
  const what = model.task === "multi" ? "assigned labels" : "answers";
  if (promise) {
    const [wrong, sure] = [percent(promise.error_rate), percent(promise.confidence)];
    const limit = `At most ${wrong} of its ${what} are wrong, with ${sure} confidence`;
    parts.push(note(`${limit}, for texts like those that it was calibrated on.`));
  }
  if (coverage) parts.push(note(`The labels named contain the true one for ${percent(coverage)} of such texts.`));
  const cut = work.cut.get(model.id);
  const most = counted(model.max_length ?? 0, "token");
  if (cut) parts.push(note(`Of ${counted(cut, "text")} it read a part: they are longer than ${most}.`));
  return parts.length ? make("div", { className: "mix" }, make("h3", {}, name(model.id)), ...parts) : null;
}

function spreadOf(work, model) {
  const ranked = [...work.mixes.get(model.id)].sort((a, b) => b[1] - a[1]);
  const shown = ranked.length > MIXED ? ranked.slice(0, MIXED - 1) : ranked;
  const bars = shown.map(([label, count]) => make("li", {},
    label ? name(label) : make("em", {}, "not answered"),
    bar(count / work.results.length, label ? "" : " none"),
    make("span", { className: "chance" }, numbers.format(count))));
  const rest = ranked.length - shown.length;
  return [make("ul", { className: "bars" }, ...bars), ...(rest ? [note(`and ${counted(rest, "label")} more`)] : [])];
}

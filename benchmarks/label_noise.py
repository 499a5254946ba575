"""How many of the labels that were made wrong on purpose an audit finds.

    python benchmarks/label_noise.py --data ../shared/ag_news --normaliser ag_news
    python benchmarks/label_noise.py ... --cleanlab-python PATH    # of an environment with cleanlab

A share of the train labels is replaced: by any other one (uniform), by one that the classes are confused
with (confused: drawn as the audit's held-out predictions on the original labels err), or the same way again
and again (systematic: the texts of each class nearest to one of them all get the class that it is confused
with most).
Then the share of truly replaced labels among the k that rank first is reported, k being their number, beside
a logistic regression on the same embeddings and cleanlab on the same probabilities. Labels that were wrong
before count as right.

    python benchmarks/label_noise.py --data ../shared/reuters21578/train.jsonl.gz --text title body \
        --label topics --shares 0.03 0.1

Where a text may have several labels, a share of them is removed, and a third of that share of the texts get
one more: any other (uniform), or drawn by how frequent labels are (frequent). Beside newsdesk's ranking is
the one by the probability of each label, 1-p where it is given and p elsewhere, which is cleanlab's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from side_by_side import describe_machine, markdown_table
from sklearn.metrics import roc_auc_score

from newsdesk.data.duplicates import duplicate_groups
from newsdesk.data.examples import Examples
from newsdesk.data.folds import assign_folds, clusters_of
from newsdesk.evaluation.audit.audit import load_audited
from newsdesk.evaluation.audit.embeddings import embed
from newsdesk.evaluation.audit.label_issues import (
    out_of_sample_probabilities,
    rank_label_errors,
)
from newsdesk.evaluation.audit.pair_issues import LIKELY, judge_pairs, out_of_fold_log_odds
from newsdesk.model.catalog import resolve_base
from newsdesk.progress import Progress, Unit
from newsdesk.runs.label_decisions import LabelDecisions

Labels = NDArray[np.int64]
Probabilities = NDArray[np.float64]
FOLDS = 5

CLEANLAB = """
import sys, json, numpy as np
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
given = np.load(sys.argv[1])
labels, probabilities = given["labels"], given["probabilities"]
scores = {
    method: get_label_quality_scores(labels, probabilities, method=method).tolist()
    for method in ("self_confidence", "normalized_margin")
}
print(json.dumps({"scores": scores, "issues": find_label_issues(labels, probabilities).tolist()}))
"""


def replaced(
    labels: Labels, share: float, weights: NDArray[np.float64], generator: np.random.Generator
) -> Labels:
    """Labels of which ``share`` were replaced, each by a class drawn with the weights of its row."""
    noisy = labels.copy()
    for row in generator.permutation(len(labels))[: round(share * len(labels))]:
        noisy[row] = generator.choice(len(weights), p=weights[labels[row]])
    return noisy


def misunderstood(
    labels: Labels,
    share: float,
    weights: NDArray[np.float64],
    vectors: NDArray[np.float32],
    generator: np.random.Generator,
) -> Labels:
    """Labels of which ``share`` were replaced: of each class the texts nearest to one of them, all alike."""
    noisy = labels.copy()
    for label in range(len(weights)):
        rows = np.flatnonzero(labels == label)
        alike = vectors[rows] @ vectors[generator.choice(rows)]
        noisy[rows[np.argsort(-alike)[: round(share * len(rows))]]] = weights[label].argmax()
    return noisy


def confusions(probabilities: Probabilities, labels: Labels) -> NDArray[np.float64]:
    """How each class (row) is shared out among those it is mistaken for; one apart keeps them all alike."""
    counts = np.full((probabilities.shape[1],) * 2, 1e-9)
    np.add.at(counts, (labels, probabilities.argmax(axis=1)), 1)
    np.fill_diagonal(counts, 0)
    return counts / counts.sum(axis=1, keepdims=True)


def logistic_regression(features: NDArray[np.float32], labels: Labels, fold_of: Labels) -> Probabilities:
    """The usual head: multinomial logistic regression on the embeddings, scikit-learn's settings."""
    from sklearn.linear_model import LogisticRegression

    probabilities = np.zeros((len(labels), int(labels.max()) + 1))
    for fold in range(FOLDS):
        held_out = fold_of == fold
        head = LogisticRegression(max_iter=300).fit(features[~held_out], labels[~held_out])
        probabilities[held_out] = head.predict_proba(features[held_out])
    return probabilities


def figures(quality: Any, suspects: Any, wrong: NDArray[np.bool_]) -> dict[str, float]:
    """Share of wrong labels in the top k, AUROC; how many suspects are wrong, how many wrong are suspects."""
    quality, suspects = np.asarray(quality), np.asarray(suspects)
    first = np.argsort(quality, kind="stable")[: wrong.sum()]
    return {
        "top_k": float(wrong[first].mean()),
        "auroc": float(roc_auc_score(wrong, -quality)),
        "suspects": len(suspects),
        "precision": float(wrong[suspects].mean()) if len(suspects) else 0.0,
        "recall": float(wrong[suspects].sum() / wrong.sum()),
    }


def by_cleanlab(
    python: Path, probabilities: Probabilities, labels: Labels, wrong: NDArray[np.bool_]
) -> dict[str, dict[str, float]]:
    """cleanlab's two rankings of the same probabilities, each with the rows that it takes for wrong."""
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "given.npz"
        np.savez(given, probabilities=probabilities, labels=labels)
        answer = json.loads(subprocess.check_output([python, "-c", CLEANLAB, given]))
    issues = np.flatnonzero(answer["issues"])
    return {f"cleanlab, {name}": figures(q, issues, wrong) for name, q in answer["scores"].items()}


def measure(
    rows: Examples, vectors: NDArray[np.float32], shares: list[float], seed: int, cleanlab: Path | None
) -> list[dict[str, Any]]:
    """One entry for each kind of noise, share and contestant."""
    original = rows.labels
    assert original is not None
    classes = len(rows.label_names)
    clusters = clusters_of(len(rows), duplicate_groups(rows.texts))

    def audited(labels: Labels) -> Probabilities:
        settings = {"classes": classes, "folds": FOLDS, "seed": 0}
        return out_of_sample_probabilities(rows.texts, vectors, labels, clusters, **settings)

    uniform = (1 - np.eye(classes)) / (classes - 1)
    confused = confusions(audited(original), original)
    kinds: dict[str, Callable[[float, np.random.Generator], Labels]] = {
        "uniform": lambda share, generator: replaced(original, share, uniform, generator),
        "confused": lambda share, generator: replaced(original, share, confused, generator),
        "systematic": lambda share, generator: misunderstood(original, share, confused, vectors, generator),
    }
    results = []
    for kind, noise in kinds.items():
        for share in shares:
            labels = noise(share, np.random.default_rng(seed))
            wrong = labels != original
            fold_of = assign_folds(labels, clusters, FOLDS, 0)
            probabilities = audited(labels)
            found = rank_label_errors(probabilities, labels)
            contestants = {"newsdesk": figures(found.quality, found.suspects, wrong)}
            contestants["newsdesk"]["estimated"] = found.noise
            regression = rank_label_errors(logistic_regression(vectors, labels, fold_of), labels)
            contestants["logistic regression"] = figures(regression.quality, regression.suspects, wrong)
            if cleanlab is not None:
                contestants |= by_cleanlab(cleanlab, probabilities, labels, wrong)
            for name, reached in contestants.items():
                results.append({"noise": kind, "share": share, "contestant": name, **reached})
                print(line(results[-1]), file=sys.stderr, flush=True)
    return results


def with_faults(
    labels: NDArray[np.bool_], share: float, weights: NDArray[np.float64], generator: np.random.Generator
) -> NDArray[np.bool_]:
    """Labels without a ``share`` of them; a third of that share of texts have one more, by ``weights``."""
    noisy, given = labels.copy(), np.argwhere(labels)
    lost = given[generator.permutation(len(given))[: round(share * len(given))]]
    noisy[lost[:, 0], lost[:, 1]] = False
    for row in generator.permutation(len(labels))[: round(share / 3 * len(labels))]:
        others = np.where(labels[row], 0, weights)
        noisy[row, generator.choice(len(weights), p=others / others.sum())] = True
    return noisy


def measure_sets(
    rows: Examples, vectors: NDArray[np.float32], shares: list[float], seed: int
) -> list[dict[str, Any]]:
    """One entry for each kind of noise, share, kind of fault and ranking, of texts with several labels."""
    original = np.asarray(rows.labels, dtype=np.bool_)
    clusters = clusters_of(len(rows), duplicate_groups(rows.texts))
    results = []
    for noise, weights in (("uniform", np.ones(original.shape[1])), ("frequent", original.mean(axis=0))):
        for share in shares:
            labels = with_faults(original, share, weights, np.random.default_rng(seed))
            log_odds = out_of_fold_log_odds(rows.texts, vectors, labels, clusters, folds=FOLDS, seed=0)
            found = judge_pairs(log_odds, labels, clusters)
            shown = LabelDecisions.fit(log_odds, labels).probabilities(log_odds)
            for kind, of_kind, by_probability in (("wrong", labels, 1 - shown), ("missing", ~labels, shown)):
                faulty, chances = (labels != original)[of_kind], found.chances[of_kind]
                suspects = np.flatnonzero(chances >= LIKELY)
                for name, order in (("newsdesk", found.misfits), ("1-p", by_probability)):
                    reached = figures(-order[of_kind], suspects, faulty)
                    if name == "newsdesk":
                        reached["estimated"] = float(chances[suspects].mean()) if len(suspects) else 0.0
                    named = {"noise": f"{kind}, {noise}", "share": share, "contestant": name}
                    results.append({**named, **reached})
                    print(line(results[-1]), file=sys.stderr, flush=True)
    return results


def line(result: dict[str, Any]) -> list[str]:
    named = [f"{result['noise']} {result['share']:.0%}", result["contestant"]]
    shares = [f"{100 * result[name]:.1f} %" for name in ("top_k", "precision", "recall")]
    estimated = f"{100 * result['estimated']:.1f} %" if "estimated" in result else ""
    return [*named, shares[0], f"{result['auroc']:.3f}", f"{result['suspects']:,}", *shares[1:], estimated]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="reuters-r8")
    parser.add_argument("--base", default="all-MiniLM-L6-v2")
    parser.add_argument("--text", nargs="+", help="columns; default: recognised, as that of the label")
    parser.add_argument("--label")
    parser.add_argument("--normaliser", default="none")
    parser.add_argument("--rows", type=int, help="a sample of so many; default: all")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.05, 0.1, 0.25])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--store", type=Path, default=Path("build/label_noise"), help="where embeddings are kept"
    )
    parser.add_argument("--cleanlab-python", type=Path)
    parser.add_argument("--json", type=Path, default=Path("build/label_noise.json"))
    asked = parser.parse_args()
    columns = {"text": asked.text, "label": asked.label}
    rows = load_audited(asked.data, split="train", normaliser=asked.normaliser, **columns).examples
    vectors = embed(rows.texts, resolve_base(asked.base), asked.store, progress=said_now_and_then())
    if asked.rows is not None:
        chosen = np.sort(np.random.default_rng(asked.seed).permutation(len(rows))[: asked.rows])
        rows, vectors = rows.select(chosen), vectors[chosen]
    if rows.is_multi:
        results = measure_sets(rows, vectors, asked.shares, asked.seed)
    else:
        results = measure(rows, vectors, asked.shares, asked.seed, asked.cleanlab_python)
    heads = (
        "noise",
        "ranked by",
        "wrong in top k",
        "AUROC",
        "suspects",
        "of these wrong",
        "of wrong found",
        "these said" if rows.is_multi else "noise said",
    )
    print(markdown_table(heads, map(line, results)))
    settings = {name: str(value) for name, value in vars(asked).items()}
    machine = describe_machine("numpy", "scikit-learn", "torch", "transformers")
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(
        json.dumps({"settings": settings, "machine": machine, "results": results}, indent=2)
    )


def said_now_and_then() -> Progress:
    """Say how many rows are embedded, every half minute."""
    said = [time.monotonic()]

    def say(done: int, total: int | None, what: str, unit: Unit = "bytes", /) -> None:
        if time.monotonic() - said[0] > 30:
            said[0] = time.monotonic()
            print(f"{what}: {done:,} of {total:,} {unit}", file=sys.stderr, flush=True)

    return say


if __name__ == "__main__":
    main()

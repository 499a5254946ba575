"""Which way of explaining is faithful: does the score fall where the words it names are taken away?

    python benchmarks/explanations.py runs/agnews --data ../shared/ag_news --texts 150

Comprehensiveness is what the predicted class's probability loses when the top words are erased, sufficiency
what it loses when only they stay (DeYoung et al., 2020). Each is measured with erased words deleted and with
erased words replaced by the mask token, since a method that tries out one of the two has an advantage there.
Prints means over texts with 95 % bootstrap intervals, and seconds a text. Torch runs as OMP_NUM_THREADS says.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsdesk.cli.tables import render_columns
from newsdesk.data.words import Span, without, word_spans
from newsdesk.evaluation.rows import evaluation_rows
from newsdesk.prediction.explanation import log_odds
from newsdesk.prediction.open_model import RunClassifier
from newsdesk.runs.folder import open_run

Weights = NDArray[np.float64]
Method = Callable[[RunClassifier, str, Sequence[Span], int], Weights]
Erase = Callable[[str, Sequence[Span]], str]

COUNTS = (1, 3, 5)
SHARES = (0.1, 0.2, 0.5)
SPECIAL_TOKENS = ("[MASK]", "<mask>")
STEPS = 32  # of the path from no text to the text


def masked_by(predictor: RunClassifier) -> Erase:
    """Replace each span by the tokenizer's mask token."""
    tokenizer = predictor.tokenizer._tokenizer
    mask = next(token for token in SPECIAL_TOKENS if tokenizer.token_to_id(token) is not None)

    def erase(text: str, spans: Sequence[Span]) -> str:
        for start, end in sorted(spans, reverse=True):
            text = text[:start] + mask + text[end:]
        return text

    return erase


def occlusion(erase: Erase) -> Method:
    """What the class's log-odds lose when a word is erased."""

    def weigh(predictor: RunClassifier, text: str, words: Sequence[Span], target: int) -> Weights:
        texts = [text, *(erase(text, [word]) for word in words)]
        scores = log_odds(predictor.predict_logits(texts), target)
        return scores[0] - scores[1:]

    return weigh


def sampled_regression(erase: Erase) -> Method:
    """Log-odds of texts with random halves of their words erased, regressed on who stayed (Ribeiro, 2016)."""

    def weigh(predictor: RunClassifier, text: str, words: Sequence[Span], target: int) -> Weights:
        generator = np.random.default_rng(0)
        stays = generator.random((len(words) + 1, len(words))) < 0.5
        stays[0] = True
        texts = [
            erase(text, [word for word, kept in zip(words, row, strict=True) if not kept]) for row in stays
        ]
        scores = log_odds(predictor.predict_logits(texts), target)
        centred = stays - stays.mean(axis=0)
        ridge = centred.T @ centred + np.eye(len(words))
        return np.linalg.solve(ridge, centred.T @ (scores - scores.mean()))

    return weigh


def integrated_gradients(predictor: RunClassifier, text: str, words: Sequence[Span], target: int) -> Weights:
    """Gradients of the log-odds on the straight way from mask tokens to the text (Sundararajan, 2017)."""
    import torch

    tokenizer = predictor.tokenizer._tokenizer
    encoding = tokenizer.encode(text)
    model = predictor._network.model
    table = model.get_input_embeddings()
    mask = next(filter(None, map(tokenizer.token_to_id, SPECIAL_TOKENS)))
    ids = torch.tensor(encoding.ids)
    is_special = torch.tensor(encoding.special_tokens_mask, dtype=torch.bool)
    end = table(ids).detach()
    begin = table(torch.where(is_special, ids, torch.tensor(mask))).detach()
    shares = (torch.arange(STEPS) + 0.5) / STEPS
    path = (begin + shares[:, None, None] * (end - begin)).requires_grad_()
    logits = model(inputs_embeds=path, attention_mask=torch.ones(path.shape[:2], dtype=torch.long)).logits
    others = torch.cat([logits[:, :target], logits[:, target + 1 :]], dim=1)
    score = logits[:, target] - others.logsumexp(dim=1)
    (gradient,) = torch.autograd.grad(score.sum(), path)
    tokens = ((end - begin) * gradient.mean(dim=0)).sum(dim=1).double().numpy()
    weights = np.zeros(len(words))
    for weight, (start, stop) in zip(
        tokens[~is_special], np.array(encoding.offsets)[~is_special], strict=True
    ):
        for number, (first, last) in enumerate(words):
            if start < last and stop > first:
                weights[number] += weight
    return weights


def at_random(_predictor: RunClassifier, text: str, words: Sequence[Span], _target: int) -> Weights:
    return np.array([random.Random(f"{text}{word}").random() for word in words])


def measure(
    predictor: RunClassifier, texts: Sequence[str], method: Method, erasures: dict[str, Erase]
) -> tuple[dict[str, list[float]], float]:
    """Figures of every text by name, and seconds a text."""
    figures: dict[str, list[float]] = {}
    seconds = 0.0
    for text in texts:
        words = word_spans(text)
        probabilities = predictor.predict_probabilities([text])[0]
        target = int(probabilities.argmax())
        began = time.perf_counter()
        weights = method(predictor, text, words, target)
        seconds += time.perf_counter() - began
        ranked = [words[i] for i in np.argsort(-weights, kind="stable")]
        for name, erase in erasures.items():
            for label, value in faithfulness(predictor, text, ranked, target, erase).items():
                figures.setdefault(f"{name} {label}", []).append(value)
    return figures, seconds / len(texts)


def faithfulness(
    predictor: RunClassifier, text: str, ranked: Sequence[Span], target: int, erase: Erase
) -> dict[str, float]:
    """Losses of the target's probability, 0 to 1, by what is erased."""
    counts = {f"top {count}": count for count in COUNTS}
    shares = [max(1, round(share * len(ranked))) for share in SHARES]
    texts = [text, *(erase(text, ranked[:count]) for count in (*counts.values(), *shares))]
    texts += [erase(text, ranked[count:]) for count in shares]
    lost = (
        predictor.predict_probabilities([text])[0, target]
        - predictor.predict_probabilities(texts)[1:, target]
    )
    by_count, by_share, only = np.split(lost.astype(float), [len(COUNTS), len(COUNTS) + len(SHARES)])
    return {
        **dict(zip(counts, by_count.tolist(), strict=True)),
        "comprehensiveness": float(by_share.mean()),
        "sufficiency": float(only.mean()),
    }


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % bootstrap interval of the mean."""
    drawn = np.random.default_rng(0).integers(0, len(values), (5000, len(values)))
    low, high = np.quantile(np.asarray(values)[drawn].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    arguments = parse_arguments()
    predictor = RunClassifier(open_run(arguments.run), device="cpu")
    rows = evaluation_rows(predictor.run, arguments.data, arguments.split)
    chosen = random.Random(arguments.seed).sample(range(len(rows)), arguments.texts)
    texts = [rows.texts[row] for row in chosen if len(word_spans(rows.texts[row])) >= 5]
    mask = masked_by(predictor)
    methods: dict[str, Method] = {
        "occlusion, deleted": occlusion(without),
        "occlusion, masked": occlusion(mask),
        "integrated gradients": integrated_gradients,
        "sampled regression": sampled_regression(without),
        "random": at_random,
    }
    results: list[dict[str, Any]] = []
    for name, method in methods.items():
        if arguments.methods and name not in arguments.methods:
            continue
        figures, seconds = measure(predictor, texts, method, {"deleted": without, "masked": mask})
        results.append({"method": name, "seconds": seconds, "figures": figures})
        print(f"{name}: {seconds:.3f} s a text", flush=True)
    for erasure in ("deleted", "masked"):
        print(f"\nwords erased by being {erasure}; {len(texts)} texts, mean loss of probability in points")
        print("\n".join(render_columns([line(result, erasure) for result in results])))
    if arguments.json:
        arguments.json.write_text(json.dumps(results) + "\n")


def line(result: dict[str, Any], erasure: str) -> dict[str, object]:
    shown: dict[str, object] = {"method": result["method"]}
    for key, values in result["figures"].items():
        if key.startswith(erasure):
            mean, (low, high) = np.mean(values), interval(values)
            shown[key.removeprefix(f"{erasure} ")] = f"{100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    return shown


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--texts", type=int, default=150)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()

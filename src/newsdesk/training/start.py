"""How a training begins that has few rows: adapters and head fitted to what the frozen encoder makes of them.

BERT's classifiers read the first token's last state. Sentence encoders were trained on the mean of all tokens
and never used it, so that a linear model of it is clearly worse on few rows than one of the mean. From so few
rows the steps of a training do not make up for that: it begins where the two are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from newsdesk.model.architectures import BERT_LIKE
from newsdesk.model.network import Network
from newsdesk.model.tokenizer import TokenIds
from newsdesk.runs.label_decisions import strata
from newsdesk.runs.off_topic import stratified_rows
from newsdesk.training.loop import EncodedRows

_MOST_ROWS = 2000
_SPREAD = 0.5
"""Of the pooler's inputs in its tanh: nearly linear there, and far enough from zero to be told apart."""
_RIDGE = 1e-3
_INVERSE_PENALTY = {1: 0.04, 2: 1.0}
"""Of one class a text, whose order is all that counts, and of several labels, which are told from none."""
_OUT_OF_REACH = -5.0
_BATCH = 32


def start_fitted(network: Network, rows: EncodedRows, *, seed: int) -> tuple[str, ...]:
    """Let the first token read the mean of all tokens, and the head be a logistic regression on that.

    The last layer's query adapter takes back, at its rank, what the frozen layer makes of the first token's
    state: attention to all tokens is then alike. The pooler becomes the identity around the rows' mean, and
    the output a regularised logistic regression (of several labels a text one each) on what it gives. All of
    it is trained on from there, and saved as any adapter and head.

    Args:
        network: a fresh classifier; its trained parameters are changed in place.
        rows: what is learned from; of more than 2,000 rows as many are used, stratified.
        seed: draws the rows.

    Returns:
        Why it was left as it was, a sentence; none where it was fitted.
    """
    classifier: Any = network.model.get_base_model()
    layout = BERT_LIKE.get(classifier.config.model_type)
    if layout is None:
        known = ", ".join(BERT_LIKE)
        return (f"it begins at random: {classifier.config.model_type} is not one of {known}",)
    pooler, output = (_trained(classifier.get_submodule(name)) for name in (layout.pooler, layout.output))
    if pooler is None or output is None:
        return ("it begins at random: its pooler is not trained (model.train_pooler)",)
    chosen = stratified_rows(strata(rows.labels), _MOST_ROWS, seed=seed)
    texts, labels = [rows.token_ids[row] for row in chosen], rows.labels[chosen]
    query = getattr(classifier, layout.prefix).encoder.layer[-1].get_submodule(layout.query)
    training = network.training
    network.eval()
    with torch.no_grad():
        if hasattr(query, "lora_A") and not any(getattr(query, "use_dora", {}).values()):
            _attend_to_all(query, _inputs_of(query, network, texts))
        of_windows = _inputs_of(pooler, network, texts)
        states = torch.from_numpy(network.windows.split(texts).mean(of_windows.cpu().numpy()))
        _fit_head(pooler, output, states.to(of_windows.device), labels)
    network.train(training)
    return ()


def _trained(module: Any) -> Any:
    """The trained copy of a module of the head; None where it is frozen."""
    copies = getattr(module, "modules_to_save", None)
    found = module if copies is None else copies["default"]
    return found if found.weight.requires_grad else None


def _inputs_of(module: nn.Module, network: Network, token_ids: Sequence[TokenIds]) -> Tensor:
    """What a module of the peft model is given of each text's first token, float32 (windows, hidden)."""
    caught: list[Tensor] = []

    def catch(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        states = inputs[0].float()
        caught.append(states[:, 0] if states.ndim == 3 else states)

    windows = network.windows.split(token_ids).ids
    hook = module.register_forward_pre_hook(catch)
    try:
        for start in range(0, len(windows), _BATCH):
            network.logits_by_peft(*network.batch(windows[start : start + _BATCH]))
    finally:
        hook.remove()
    return torch.cat(caught)


def _attend_to_all(query: Any, states: Tensor) -> None:
    """Let a query's adapter take back what the frozen layer makes of states (rows, hidden), at its rank.

    Least squares with a small ridge, cut to the adapter's rank by what matters on these states (reduced-rank
    regression; Izenman, 1975).
    """
    (name,) = query.lora_A
    down, up = query.lora_A[name].weight, query.lora_B[name].weight
    given = query.base_layer(states.to(query.base_layer.weight.dtype)).float()
    ridge = _RIDGE * states.square().sum() / len(states) * torch.eye(len(states), device=states.device)
    update = -given.T @ torch.linalg.solve(states @ states.T + ridge, states)
    directions, _, _ = torch.linalg.svd(update @ states.T, full_matrices=False)
    directions = directions[:, : len(down)]
    rows = directions.T @ update
    lengths = rows.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    down.zero_()
    up.zero_()
    down[: len(rows)] = rows / lengths[:, None]
    up[:, : len(rows)] = directions * lengths / query.scaling[name]


def _fit_head(pooler: Any, output: Any, states: Tensor, labels: NDArray[Any]) -> None:
    """Make the pooler pass states (rows, hidden) on, scaled into its tanh, and fit the output to that."""
    centre = states.mean(dim=0)
    scale = _SPREAD / (states - centre).std().clamp_min(torch.finfo(torch.float32).tiny)
    pooler.weight.copy_(scale * torch.eye(len(centre), device=states.device))
    pooler.bias.copy_(-scale * centre)
    features = torch.tanh(scale * (states - centre)).cpu().numpy()
    weights, biases = _logistic_regression(features, labels, len(output.weight))
    output.weight.copy_(torch.from_numpy(weights))
    output.bias.copy_(torch.from_numpy(biases))


def _logistic_regression(
    features: NDArray[np.float32], labels: NDArray[Any], classes: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights (classes, features) and biases (classes,); those of a class without rows stay out of reach."""
    from sklearn.linear_model import LogisticRegression

    weights, biases = np.zeros((classes, features.shape[1])), np.full(classes, _OUT_OF_REACH)
    model = LogisticRegression(C=_INVERSE_PENALTY[labels.ndim], max_iter=1000)
    if labels.ndim == 2:
        shares = labels.mean(axis=0).clip(1e-3, 1 - 1e-3)
        biases = np.log(shares / (1 - shares))
        for label in np.flatnonzero(labels.any(axis=0) & ~labels.all(axis=0)):
            fitted = model.fit(features, labels[:, label])
            weights[label], biases[label] = fitted.coef_[0], fitted.intercept_[0]
    else:
        fitted = model.fit(features, labels)
        known = fitted.classes_
        if len(known) == 2:  # one row of weights: of the second class against the first
            weights[known[1]], biases[known] = fitted.coef_[0], (0.0, fitted.intercept_[0])
        else:
            weights[known], biases[known] = fitted.coef_, fitted.intercept_
    return weights.astype(np.float32), biases.astype(np.float32)

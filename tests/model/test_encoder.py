"""The fused encoder computes what transformers + peft compute, on the same parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402

from newsdesk.model import encoder, fused_ops  # noqa: E402
from newsdesk.model.encoder import fuse, reason_not_fusable  # noqa: E402

FAMILIES = {
    "bert": ("Bert", 0),
    "roberta": ("Roberta", 1),
    "xlm-roberta": ("XLMRoberta", 1),
    "camembert": ("Camembert", 1),
    "mpnet": ("MPNet", 1),
    "distilbert": ("DistilBert", 0),
}
QUERY_VALUE = {"mpnet": ["q", "v"]}


def tiny(family: str = "bert", *, dropout: float = 0.0, seed: int = 0, **lora: Any) -> Any:
    """A peft model of random weights large enough that attention, biases and adapters all matter."""
    torch.manual_seed(seed)
    prefix, padding = FAMILIES[family]
    config = getattr(transformers, f"{prefix}Config")(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=40,
        num_labels=3,
        pad_token_id=padding,
        initializer_range=0.2,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    model = getattr(transformers, f"{prefix}ForSequenceClassification")(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    settings = {
        "task_type": "SEQ_CLS",
        "r": 4,
        "lora_alpha": 6,
        "lora_dropout": dropout,
        "target_modules": QUERY_VALUE.get(family, ["query", "value"]),
        "init_lora_weights": False,
    }
    return peft.get_peft_model(model, peft.LoraConfig(**(settings | lora))).eval()


def batch(model: Any, *, padded: bool, rows: int = 5, length: int = 13) -> tuple[Any, Any]:
    """Token ids and mask (rows, length), rows of falling lengths where padded."""
    ids = torch.randint(5, 60, (rows, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if padded:
        for row in range(1, rows):
            mask[row, length - 2 * row :] = 0
        ids[mask == 0] = model.config.pad_token_id
    return ids, mask


def gradients(model: Any, logits: Any) -> dict[str, Any]:
    """By the peft model's parameter names, of one fixed weighting of the logits."""
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits)
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    return dict(zip(names, torch.autograd.grad((logits * weights).sum(), parameters), strict=True))


def assert_same_function(model: Any) -> None:
    """Logits within 1e-5 and every gradient within 1e-4 relative, padded and not."""
    untouched = copy.deepcopy(model)
    fused = fuse(model)
    for padded in (True, False):
        ids, mask = batch(model, padded=padded)
        expected, actual = untouched(input_ids=ids, attention_mask=mask).logits, fused(ids, mask)
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
        theirs, ours = gradients(untouched, expected), gradients(model, actual)
        for name, gradient in theirs.items():
            assert (ours[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


@pytest.mark.parametrize("targets", ["query-value", "all-linear"])
@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "camembert", "mpnet"])
def test_logits_and_gradients_are_those_of_transformers_and_peft(family: str, targets: str) -> None:
    lora = {"target_modules": "all-linear"} if targets == "all-linear" else {}
    assert_same_function(tiny(family, **lora))


@pytest.mark.parametrize(
    "lora",
    [
        {
            "target_modules": ["query", "key", "value", "output.dense"],
            "rank_pattern": {"query": 2, "layer.1.output.dense": 7},
            "alpha_pattern": {"value": 3},
        },
        {"use_rslora": True, "r": 5},
        {
            "target_modules": [
                "layer.1.attention.self.key",
                "layer.2.attention.self.query",
                "layer.0.output.dense",
            ]
        },
        {"modules_to_save": ["classifier", "pooler"]},
        {"target_modules": ["query", "pooler.dense"]},
    ],
    ids=["patterns", "rslora", "layer-by-layer", "trained-pooler", "adapted-pooler"],
)
def test_every_way_to_place_and_scale_adapters_is_taken_over(lora: dict[str, Any]) -> None:
    assert_same_function(tiny(**lora))


def test_the_trained_parameters_are_the_same_objects() -> None:
    model = tiny("roberta", target_modules="all-linear")
    fused = fuse(model)
    theirs = {id(p): n for n, p in model.named_parameters() if p.requires_grad}
    assert {id(p) for p in fused.parameters() if p.requires_grad} == set(theirs)


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_a_step_through_the_fused_model_trains_the_peft_model(family: str, tmp_path: Any) -> None:
    model = tiny(family)
    fused, (ids, mask) = fuse(model), batch(model, padded=True)
    before = fused(ids, mask).detach()
    optimiser = torch.optim.AdamW(fused.parameters(), lr=0.05)
    torch.nn.functional.cross_entropy(fused(ids, mask), torch.tensor([0, 1, 2, 0, 1])).backward()
    optimiser.step()

    after = fused(ids, mask)
    assert (after - before).abs().max() > 0.05
    torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits, after, atol=1e-5, rtol=0)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny(family).unload(), tmp_path).eval()
    torch.testing.assert_close(loaded(input_ids=ids, attention_mask=mask).logits, after, atol=1e-5, rtol=0)


def test_frozen_weights_are_held_once() -> None:
    model = tiny()
    fused = fuse(model)
    attention = model.get_base_model().bert.encoder.layer[0].attention.self
    storage = fused.layers[0].query_key_value.weight.untyped_storage().data_ptr()
    for linear in (attention.query.base_layer, attention.key, attention.value.base_layer):
        assert linear.weight.untyped_storage().data_ptr() == storage
    ours = {t.untyped_storage().data_ptr() for t in (*fused.parameters(), *fused.buffers())}
    theirs = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    assert ours <= theirs


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet"])
def test_bfloat16_is_as_near_float32_as_autocast_and_keeps_adapters_and_head_in_float32(family: str) -> None:
    model = tiny(family)
    ids, mask = batch(model, padded=True)

    def run(call: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
        logits = call()
        return logits.detach().float(), gradients(model, logits.float())

    exact, exact_gradients = run(lambda: model(input_ids=ids, attention_mask=mask).logits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast, autocast_gradients = run(lambda: model(input_ids=ids, attention_mask=mask).logits)
    fused = fuse(model, compute_dtype=torch.bfloat16)
    assert fused(ids, mask).dtype == torch.float32
    assert fused.layers[0].query_key_value.weight.dtype == torch.bfloat16
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    ours, our_gradients = run(lambda: fused(ids, mask))
    with torch.autocast("cpu", dtype=torch.bfloat16):  # the peft model still works, on the rounded weights
        rounded, _ = run(lambda: model(input_ids=ids, attention_mask=mask).logits)

    for logits in (autocast, ours, rounded):
        assert (logits - exact).norm() < 0.05 * exact.norm()

    def mean_error(found: dict[str, Any]) -> float:
        errors = [(found[name] - g).norm() / g.norm() for name, g in exact_gradients.items()]
        return float(sum(errors) / len(errors))

    assert mean_error(our_gradients) < 2 * mean_error(autocast_gradients)


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_training_with_dropout_is_random_seeded_and_differentiable(family: str) -> None:
    model = tiny(family, dropout=0.1)
    fused, (ids, mask) = fuse(model), batch(model, padded=True)
    calm = fused(ids, mask)
    torch.testing.assert_close(fused(ids, mask), calm)
    fused.train()

    def one(seed: int) -> tuple[Any, dict[str, Any]]:
        torch.manual_seed(seed)
        logits = fused(ids, mask)
        return logits.detach(), gradients(model, logits)

    (first, first_gradients), (again, again_gradients), (other, _) = one(1), one(1), one(2)
    assert torch.equal(first, again)
    assert all(torch.equal(gradient, again_gradients[name]) for name, gradient in first_gradients.items())
    assert (first - other).abs().max() > 0.01
    assert (first - calm).abs().max() > 0.01


def test_dropped_training_logits_are_spread_around_what_peft_spreads_around() -> None:
    model = tiny(dropout=0.1)
    reference, (ids, mask) = copy.deepcopy(model).train(), batch(model, padded=True)
    fused = fuse(model).train()
    torch.manual_seed(0)
    with torch.no_grad():
        ours = torch.stack([fused(ids, mask) for _ in range(150)])
        theirs = torch.stack([reference(input_ids=ids, attention_mask=mask).logits for _ in range(150)])
    error = (ours.var(0) / 150 + theirs.var(0) / 150).sqrt()
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 4.5 * error).all()
    assert 0.8 < (ours.std(0) / theirs.std(0)).mean() < 1.25


def test_layers_below_the_first_adapter_build_no_graph() -> None:
    fused = fuse(tiny(dropout=0.1, layers_to_transform=[1])).train()
    with_graph: list[bool] = []
    for layer in fused.layers:
        layer.register_forward_hook(lambda *call: with_graph.append(call[-1].requires_grad))
    fused(*batch(tiny(), padded=True)).sum().backward()
    assert with_graph == [False, True, True]


@pytest.mark.parametrize("family", ["bert", "mpnet"])
@pytest.mark.parametrize("padded", [True, False])
def test_without_dropout_attention_is_the_flash_kernel(family: str, padded: bool) -> None:
    model = tiny(family)
    fused, (ids, mask) = fuse(model), batch(model, padded=padded)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # raises where that kernel does not take the mask
        logits = fused(ids, mask)
    torch.testing.assert_close(logits, fused(ids, mask))


def test_a_batch_without_padding_needs_no_mask() -> None:
    model = tiny("roberta")
    fused, (ids, mask) = fuse(model), batch(model, padded=False)
    assert fused._attention_bias(ids, mask, torch.float32) is None
    assert torch.equal(fused(ids), fused(ids, mask))


def test_a_row_of_nothing_but_padding_harms_no_other_and_is_finite() -> None:
    model = tiny()
    fused, (ids, mask) = fuse(model), batch(model, padded=True)
    alone = fused(ids[:4], mask[:4])
    mask[4] = 0
    logits = fused(ids, mask)
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[:4], alone)


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_dropout_keeps_its_share_and_the_mean(probability: float) -> None:
    torch.manual_seed(0)
    ones = torch.ones(401, 503)  # an odd number of elements
    kept = fused_ops.dropout(ones.clone(), probability)
    assert (kept != 0).float().mean() == pytest.approx(1 - probability, abs=0.005)
    assert kept.mean() == pytest.approx(1, abs=0.01)
    assert torch.equal(fused_ops.dropout(ones, 0.0), ones)


def _gradients_agree(ours: Callable[..., Any], theirs: Callable[..., Any], *inputs: Any) -> None:
    """Both draw the same dropout from the same seed; theirs leaves the backward pass to autograd."""
    results = []
    for function in (ours, theirs):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        torch.manual_seed(3)
        y = function(*leaves)
        weights = torch.linspace(-1, 1, y.numel()).view_as(y)
        results.append((y, *torch.autograd.grad((y * weights).sum(), leaves)))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("length", [7, 29])  # beyond 3 times the head's size of 8 it is computed anew
def test_the_backward_pass_of_attention_with_dropout_is_autograds(length: int) -> None:
    q, k, v = torch.randn(3, 2, length, 4, 8, generator=torch.Generator().manual_seed(0))
    bias = torch.randn(1, 4, length, length, generator=torch.Generator().manual_seed(1))

    def plain(q: Any, k: Any, v: Any) -> Any:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        probabilities = (q @ k.transpose(2, 3) / 8**0.5 + bias).softmax(-1)
        keep = fused_ops.Keep.draw(probabilities, 0.3)
        dropped = probabilities * keep.mask(torch.float32) * keep.scale
        return (dropped @ v).transpose(1, 2).reshape(2 * length, 32)

    _gradients_agree(lambda q, k, v: fused_ops.attention(q, k, v, bias, 0.3), plain, q, k, v)


@pytest.mark.parametrize(("length", "kept"), [(24, True), (25, False)])
def test_the_probabilities_of_long_texts_are_not_kept(length: int, kept: bool) -> None:
    q, k, v = torch.randn(3, 2, length, 4, 8, requires_grad=True)
    sizes = []

    def note(tensor: Any) -> Any:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        fused_ops.attention(q, k, v, None, 0.1)
    assert (2 * 4 * length * length in sizes) == kept


def test_the_backward_pass_of_an_adapted_layer_with_dropout_is_autograds() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((9, 6), (3, 6), (4, 3), (2, 6), (5, 2))  # x; A and B of a rank 3 and of a rank 2 adapter
    inputs = [torch.randn(shape, generator=generator) for shape in shapes]
    weight, bias = torch.randn(12, 6, generator=generator), torch.randn(12, generator=generator)
    spans = (fused_ops.Span(0, 4, 0.5), fused_ops.Span(7, 12, 2.0))

    def plain(x: Any, *factors: Any) -> Any:
        keep = fused_ops.Keep.draw(x, 0.3)
        seen = x * keep.mask(torch.float32) * keep.scale
        first, second = (seen @ a.t() @ b.t() for a, b in (factors[:2], factors[2:]))
        return x @ weight.t() + bias + torch.cat([0.5 * first, x.new_zeros(9, 3), 2 * second], 1)

    _gradients_agree(
        lambda x, *factors: fused_ops.AdaptedLinear.apply(x, weight, bias, spans, 0.3, *factors),
        plain,
        *inputs,
    )


def test_the_backward_pass_of_dropout_and_residual_is_autograds() -> None:
    y, residual = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0))

    def plain(y: Any, residual: Any) -> Any:
        keep = fused_ops.Keep.draw(y, 0.3)
        return residual + y * keep.mask(torch.float32) * keep.scale

    _gradients_agree(lambda y, residual: fused_ops.dropout_add(y, residual, 0.3), plain, y, residual)


def test_the_allocator_is_told_to_keep_memory_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []

    class Glibc:
        @staticmethod
        def mallopt(option: int, value: int) -> int:
            calls.append((option, value))
            return 1

    monkeypatch.setattr(encoder.ctypes, "CDLL", lambda _: Glibc)
    assert encoder.keep_freed_memory()
    assert calls == [(-3, 32 * 2**20), (-1, -1)]
    monkeypatch.setattr(encoder.ctypes, "CDLL", lambda _: object())
    assert not encoder.keep_freed_memory()


def _second_adapter() -> Any:
    model = tiny()
    model.add_adapter("other", peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    return model


def _trained_layer_norm() -> Any:
    model = tiny()
    model.get_base_model().bert.encoder.layer[0].output.LayerNorm.weight.requires_grad_(True)
    return model


def _merged() -> Any:
    model = tiny()
    model.merge_adapter()
    return model


def _subclassed_linear() -> Any:
    model = tiny()
    kind = type("Linear4bit", (torch.nn.Linear,), {})
    model.get_base_model().bert.encoder.layer[1].intermediate.dense.__class__ = kind
    return model


def _relative_positions() -> Any:
    model = tiny()
    model.config.position_embedding_type = "relative_key"
    return model


def _decoder() -> Any:
    model = tiny()
    model.config.is_decoder = True
    return model


def _prompt_tuning() -> Any:
    config = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)
    return peft.get_peft_model(tiny().unload(), config)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: tiny(use_dora=True), "Dora"),
        (lambda: tiny("distilbert", target_modules=["q_lin"]), "distilbert is not one of bert, roberta"),
        (lambda: tiny(bias="all"), "it trains bert.embeddings.LayerNorm.bias"),
        (lambda: tiny(bias="lora_only"), "query.base_layer.bias"),
        (lambda: tiny(lora_bias=True), "the adapter of bert.encoder.layer.0.attention.self.query has a bias"),
        (lambda: tiny(target_modules=["query", "word_embeddings"]), "word_embeddings is adapted"),
        (
            lambda: tiny(modules_to_save=["classifier", "output.dense"]),
            "ModulesToSaveWrapper, not a plain linear",
        ),
        (lambda: tiny(modules_to_save=["classifier", "LayerNorm"]), "LayerNorm is adapted"),
        (_trained_layer_norm, "it trains bert.encoder.layer.0.output.LayerNorm.weight"),
        (_second_adapter, "2 adapters"),
        (_merged, "merged or disabled"),
        (_subclassed_linear, "layer.1.intermediate.dense is a Linear4bit"),
        (_relative_positions, "relative_key"),
        (_decoder, "decoder"),
        (_prompt_tuning, "PROMPT_TUNING"),
        (lambda: torch.nn.Linear(2, 2), "not a peft model"),
    ],
)
def test_what_cannot_be_fused_says_why_and_is_refused(build: Callable[[], Any], reason: str) -> None:
    model = build()
    assert reason in (reason_not_fusable(model) or "")
    with pytest.raises(ValueError, match="cannot be fused"):
        fuse(model)


def test_an_adapter_loaded_for_inference_keeps_float32_and_trains_nothing(tmp_path: Any) -> None:
    tiny(lora_alpha=9).save_pretrained(tmp_path)
    model = peft.PeftModel.from_pretrained(tiny().unload(), tmp_path).eval()
    ids, mask = batch(model, padded=True)
    expected = model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(fuse(model)(ids, mask), expected, atol=1e-5, rtol=0)
    fused = fuse(model, compute_dtype=torch.bfloat16)
    assert {p.dtype for p in fused.layers[0].query_key_value.factors} == {torch.float32}
    assert not fused(ids, mask).requires_grad

"""A classifier ready to compute: on its device, in its precision, by the fastest engine that fits it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from newsdesk.errors import UserError
from newsdesk.files import damaged
from newsdesk.model.architectures import feature_layer, longest_text, reason_not_bert_like, vocabulary_of
from newsdesk.model.base_files import load_encoder
from newsdesk.model.encoder import FusedClassifier, FusedEncoder, fuse, mean_over_tokens, reason_not_fusable
from newsdesk.model.tokenizer import (
    TextTokenizer,
    TokenIds,
    batches_by_tokens,
    length_sorted_batches,
    lengths_of,
    pad,
)
from newsdesk.model.trunk import TrunkStates
from newsdesk.model.windows import LongTexts, Windowed, Windows
from newsdesk.progress import Progress, counting

if TYPE_CHECKING:
    from peft import PeftModel


Values = NDArray[np.float32]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Network(nn.Module):
    """Token ids to logits. Shares its trained parameters with the PEFT model that gets saved.

    Attributes:
        model: the PEFT model, whose trainable parameters are also this module's.
        engine: which implementation computes it and, if it is not the fastest one, why.
        windows: the windows that a long text is computed in, each a row of a batch.
    """

    def __init__(
        self,
        model: PeftModel,
        device: torch.device,
        precision: Precision,
        windows: Windows | None = None,
        *,
        compiled: bool = False,
    ) -> None:
        """Move ``model`` to ``device`` and choose the engine: the fused encoder where it can.

        ``windows`` are those of the tokenizer (None: every text is one row).
        ``compiled`` has torch.compile generate the fused encoder's kernels for training, which takes tens of
        seconds once; where that fails it is left out, and ``engine`` says why.
        """
        super().__init__()
        model.to(device)  # before fusing, which makes weights views of one matrix
        self.model = model
        self.device = device
        self.precision = precision
        self.windows = windows or Windows()
        self.pad_id = int(model.config.pad_token_id or 0)
        # float16 underflows without scaled losses and autocast, which the fused encoder does not do.
        reason = "float16 goes through autocast" if precision == "float16" else reason_not_fusable(model)
        self.engine = "fused encoder" if reason is None else f"transformers + peft ({reason})"
        self._fused = fuse(model, compute_dtype=_DTYPES[precision]) if reason is None else None
        self._trunk: TrunkStates | None = None
        if self._fused is not None and compiled:
            obstacle = compile_layers(self._fused, device)
            self.engine += ", compiled" if obstacle is None else f" (not compiled: {obstacle})"

    @property
    def is_fused(self) -> bool:
        """Whether the fused encoder computes it, which never waits for the device."""
        return self._fused is not None

    def keep_trunk(
        self, sequences: Sequence[TokenIds], folder: Path, base: str, progress: Progress | None = None
    ) -> None:
        """Compute what the layers below the adapters make of these texts, once, and use it from now on.

        ``folder`` keeps it for all trainings on the same base model, which ``base`` names by a hash. Does
        nothing without such layers. ``progress`` is called with the texts done.
        """
        fused = self._fused
        if fused is None or not fused.trunk_layers:
            return
        identity = {"base": base, "layers": str(fused.trunk_layers), "precision": self.precision}
        self._trunk = TrunkStates(
            folder,
            identity,
            hidden=int(self.model.config.hidden_size),
            dtype=_DTYPES[self.precision],
            compute=lambda texts: fused.trunk_states(*self.batch(texts)),
        )
        self._trunk.keep(self.windows.split(sequences).ids, progress)
        below = f"the lower {fused.trunk_layers} of {len(fused.layers)} layers"
        self.engine += f", {below} computed once, without dropout"

    def forward(self, sequences: Sequence[TokenIds], to_length: int | None = None) -> Tensor:
        """Logits of a batch of texts, float32 (texts, classes) on ``device``; padded to the longest row.

        A text's are pooled from those of its windows, and their gradients go through all of these.
        """
        windowed = self.windows.split(sequences)
        return _pooled(self._logits_of_rows(windowed.ids, to_length), windowed)

    def _logits_of_rows(self, sequences: Sequence[TokenIds], to_length: int | None) -> Tensor:
        if self._trunk is None or self._fused is None:
            return self.logits(*self.batch(sequences, to_length))
        states, mask = self._trunk.batch(sequences, to_length)
        logits: Tensor = self._fused.from_trunk(
            states.to(self.device), None if mask is None else mask.to(self.device)
        )
        return logits

    def batch(
        self, sequences: Sequence[TokenIds], to_length: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Token ids and mask of 1 and 0 on ``device``, int64 (rows, longest or ``to_length``).

        The mask is None when nothing is padded: known here, where asking the device would mean waiting.
        """
        input_ids, attention_mask = pad(sequences, self.pad_id, to_length)
        unpadded = all(len(sequence) == input_ids.shape[1] for sequence in sequences)
        return self.on_device(input_ids), None if unpadded else self.on_device(attention_mask)

    def on_device(self, array: NDArray[Any]) -> Tensor:
        """The array as a tensor on ``device``; through pinned memory, which a GPU copies without waiting."""
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def logits(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits, float32 (rows, classes), of tensors as ``batch`` makes them."""
        if self._fused is not None:
            logits: Tensor = self._fused(input_ids, attention_mask)
            return logits
        return self.logits_by_peft(input_ids, attention_mask)

    def logits_by_peft(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The same through the peft model's own modules, whose hooks see what passes."""
        with self._autocast():
            output = self.model(input_ids=input_ids, attention_mask=attention_mask)
        return output.logits.float()  # type: ignore[no-any-return]

    def with_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits (rows, classes), and the tokens' states after `feature_layer`, averaged: (rows, hidden)."""
        if self._fused is not None:
            return self._fused.with_features(input_ids, attention_mask)
        with self._autocast():
            return logits_and_features(self.model, input_ids, attention_mask)

    def _autocast(self) -> torch.autocast:
        mixed = self.precision != "float32"
        return torch.autocast(self.device.type, dtype=_DTYPES[self.precision], enabled=mixed)


def logits_and_features(
    model: Any, input_ids: Tensor, attention_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What `Network.with_features` gives, of any classifier that transformers computes."""
    output = model(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
    states = output.hidden_states[feature_layer(len(output.hidden_states) - 1)]
    return output.logits.float(), mean_over_tokens(states, attention_mask)


def predict_logits(
    network: Network,
    sequences: Sequence[TokenIds],
    *,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Values:
    """Logits of any number of texts, (texts, classes), in their order; dropout off; computed longest first.

    ``batch_size`` counts windows; ``progress`` is called with the texts done.
    """
    windowed = network.windows.split(sequences)
    logits = np.zeros((len(windowed.ids), network.model.config.num_labels), dtype=np.float32)
    _fill((logits,), lambda batch: (network(batch),), network, windowed, batch_size, progress)
    return windowed.pooled(logits)


def predict_with_features(
    network: Network,
    sequences: Sequence[TokenIds],
    *,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> tuple[Values, Values]:
    """As ``predict_logits``, with the features of `Network.with_features` beside, (texts, hidden).

    Those of a text are the mean over its windows.
    """
    config = network.model.config
    windowed = network.windows.split(sequences)
    logits = np.zeros((len(windowed.ids), config.num_labels), dtype=np.float32)
    features = np.zeros((len(windowed.ids), config.hidden_size), dtype=np.float32)

    def compute(batch: Sequence[TokenIds]) -> tuple[Tensor, ...]:
        return network.with_features(*network.batch(batch))

    _fill((logits, features), compute, network, windowed, batch_size, progress)
    return windowed.pooled(logits), windowed.mean(features)


def predict_rows(
    network: Network,
    sequences: Sequence[TokenIds],
    compute: Callable[[Sequence[TokenIds]], tuple[Tensor, ...]],
    columns: int,
    *,
    batch_size: int = 32,
) -> Values:
    """What ``compute`` gives of batches of windows, averaged over those of each text: (texts, columns)."""
    windowed = network.windows.split(sequences)
    values = np.zeros((len(windowed.ids), columns), dtype=np.float32)
    _fill((values,), compute, network, windowed, batch_size, None)
    return windowed.mean(values)


def _pooled(logits: Tensor, windowed: Windowed) -> Tensor:
    """As `Windowed.pooled`, of tensors with a gradient: (windows, classes) to (texts, classes)."""
    if windowed.is_single:
        return logits
    of_texts = logits.split(windowed.counts.tolist())
    pool = torch.mean if windowed.pooling == "mean" else torch.amax
    return torch.stack([pool(of_text, dim=0) for of_text in of_texts])


def _fill(
    arrays: tuple[Values, ...],
    compute: Callable[[Sequence[TokenIds]], tuple[Tensor, ...]],
    network: Network,
    windowed: Windowed,
    batch_size: int,
    progress: Progress | None,
) -> None:
    """Write what ``compute`` gives for batches of similar length into the arrays, a row for each window."""
    was_training = network.training
    network.eval()
    count = counting(progress, len(windowed.counts), "classifying")
    with torch.inference_mode():
        for rows in length_sorted_batches(lengths_of(windowed.ids), batch_size):
            tensors = compute([windowed.ids[row] for row in rows])
            for array, tensor in zip(arrays, tensors, strict=True):
                array[rows] = tensor.cpu().numpy()
            count(windowed.texts_in(rows))
    network.train(was_training)


Precision = Literal["float32", "bfloat16", "float16"]


def choose_device(name: str = "auto") -> torch.device:
    """CUDA, else Apple's MPS, else the CPU; or the device named. Raises UserError where it is not there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if not available[name]:
        there = ", ".join(device for device, is_there in available.items() if is_there)
        raise UserError(
            f"device {name} was asked for and torch sees none",
            found=f"devices here: {there}",
            fix="use --set training.device=auto, or install a torch built for your card",
        )
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> Precision:
    """Bfloat16 where the processor or card multiplies it natively, float16 on older CUDA cards, else float32.

    An explicitly named precision is taken as it is, except float16 on a CPU, which no kernel serves well:
    that raises UserError.
    """
    if name == "float16" and device.type == "cpu":
        raise UserError(
            "float16 training needs a GPU",
            found="training.precision = float16 on the CPU",
            fix="use --set training.precision=auto",
        )
    if name in ("float32", "bfloat16", "float16"):
        return name  # type: ignore[return-value]
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return "bfloat16" if device.type == "cpu" and cpu_has_bfloat16() else "float32"


def cpu_has_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16 products (AVX512-BF16 or AMX; Arm's BF16).

    Without them bfloat16 is emulated, several times slower than float32. A torch too old to say is taken
    to have none.
    """
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "arm_bf16"))


_BATCH_TOKENS = 512  # fit into a core's cache; more take longer a token


class TextEmbedder:
    """A base model as it is: a text becomes the mean of its tokens' last hidden states.

    The mean over all tokens, scaled to length 1, is what sentence encoders such as all-MiniLM were trained on
    (Reimers & Gurevych, 2019).

    Attributes:
        dimensions: length of a text's vector.
    """

    def __init__(
        self,
        base: Path,
        *,
        max_length: int,
        long_texts: LongTexts | None = None,
        device: str = "auto",
        precision: str = "auto",
    ) -> None:
        """Load encoder and tokenizer from the folder of a base model.

        Texts of more than ``max_length`` tokens are read as ``long_texts`` says; None: they are cut.
        ``device`` and ``precision`` are chosen as for a training; a model that the fused encoder cannot
        compute stays in float32. Raises UserError when the folder has no encoder that transformers can load
        or no fast tokenizer, or the device is not there.
        """
        self._base, self._device = base, choose_device(device)
        model: Any = load_encoder(base).to(self._device)  # type: ignore[arg-type]
        config = model.config
        if reason_not_bert_like(config.to_dict()) is None:
            dtype = _DTYPES[choose_precision(precision, self._device)]
            model = FusedEncoder.of(model.to(dtype))
        self._model: nn.Module = model
        length = min(max_length, longest_text(config) or max_length)
        self._tokenizer = TextTokenizer.from_folder(
            base, length, long_texts=long_texts, vocabulary=vocabulary_of(config)
        )
        self._pad_id = int(config.pad_token_id or 0)
        self.dimensions = int(config.hidden_size)

    def embed(self, texts: Sequence[str]) -> Values:
        """A vector of length 1 for each text, float32 (rows, dimensions), in the texts' order.

        The vector of a text that is read in windows is their mean, of length 1 as well. Computed in batches
        of similar length, and texts that occur twice once; on a CPU every core computes batches of its own.
        Raises UserError where the encoder computes what is no finite number.
        """
        places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        windowed = self._tokenizer.windows.split(self._tokenizer.encode(list(places)))
        vectors = np.zeros((len(windowed.ids), self.dimensions), dtype=np.float32)
        batches = batches_by_tokens(lengths_of(windowed.ids), _BATCH_TOKENS)

        def compute(rows: NDArray[np.int64]) -> None:
            vectors[rows] = self._vectors([windowed.ids[row] for row in rows])

        threads = torch.get_num_threads()
        workers = threads if self._device.type == "cpu" else 1
        torch.set_num_threads(1)  # cores that share a small batch's products wait for each other
        try:
            with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                list(pool.map(compute, batches))
        finally:
            torch.set_num_threads(threads)
        if not np.isfinite(vectors).all():
            found = "it computes vectors that are no finite numbers"
            raise damaged(
                self._base, found, fix="give --base another, or copy it again from an undamaged copy"
            )
        if not windowed.is_single:
            vectors = windowed.mean(vectors)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors[[places[text] for text in texts]]

    @torch.inference_mode()
    def _vectors(self, sequences: Sequence[TokenIds]) -> Values:
        """One batch, (rows, dimensions)."""
        input_ids, mask = (torch.from_numpy(array).to(self._device) for array in pad(sequences, self._pad_id))
        states = (
            self._model.states(input_ids, mask)
            if isinstance(self._model, FusedEncoder)
            else self._model(input_ids=input_ids, attention_mask=mask).last_hidden_state
        )
        mean = mean_over_tokens(states, mask)
        vectors: Values = F.normalize(mean, dim=1).cpu().numpy()
        return vectors


# Two shapes whose sizes all differ, also from the heads and hidden sizes in use: equal sizes would become one
# symbol, and other batches would be compiled again.
_TRIAL_SHAPES = ((5, 40), (7, 24))


class CompiledInTraining(nn.Module):
    """A layer of the fused encoder: compiled while it trains, as it is when it predicts.

    Predicting a few rows must not wait for a compiler. All layers of one form share one compiled program,
    whose lengths and batch sizes are symbols; so compiling takes as long as one layer, not as twelve.
    """

    def __init__(self, layer: nn.Module, backend: str | Callable[..., Any]) -> None:
        """Wrap ``layer``, whose parameters stay its own."""
        super().__init__()
        self.layer = layer
        self._compiled = torch.compile(layer.forward, dynamic=True, fullgraph=True, backend=backend)

    def forward(self, x: Tensor, batch: int, bias: Tensor | None) -> Tensor:
        """As the layer."""
        compute = self._compiled if self.training else self.layer
        y: Tensor = compute(x, batch, bias)
        return y


def compile_layers(
    classifier: FusedClassifier, device: torch.device, *, backend: str | Callable[..., Any] = "inductor"
) -> str | None:
    """Compile the layers for training, or leave them as they are and return why as part of a sentence.

    Tried out at once, forward and backward, so that it is known before the first step whether it works; a
    whole graph is demanded, since a break would cost more than compiling gains. Random states and gradients
    are left as they were.
    """
    layers = classifier.layers
    classifier.layers = nn.ModuleList(CompiledInTraining(layer, backend) for layer in layers)
    try:
        _try_out(classifier, device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a compiler, its linker or its cache may raise
        classifier.layers = layers
        cause = getattr(error, "inner_exception", error)  # torch wraps it in pages of text
        first_line = next(iter(str(cause).strip().splitlines()), "no reason given")
        return f"{type(cause).__name__}: {first_line}"
    return None


def _try_out(classifier: FusedClassifier, device: torch.device) -> None:
    trained = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    was_training = classifier.training
    classifier.train()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for shape in _TRIAL_SHAPES:
            input_ids = torch.full(shape, 2, device=device)
            attention_mask = torch.ones_like(input_ids)
            attention_mask[0, -1] = 0  # training on a GPU always has a mask
            logits = classifier(input_ids, attention_mask)
            torch.autograd.grad(logits.sum(), trained)
    classifier.train(was_training)

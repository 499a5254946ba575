"""Predictions from a merged model folder by transformers, as anyone else would load it."""

from __future__ import annotations

from newsdesk.errors import UserError
from newsdesk.inference.artefact import PREFERRED, ArtefactFolder
from newsdesk.inference.text_classifier import ArtefactPredictor, Outputs
from newsdesk.model.tokenizer import TextTokenizer, TokenIds


class MergedPredictor(ArtefactPredictor):
    """A merged model, ready to classify texts."""

    def __init__(self, artefact: ArtefactFolder, *, device: str = "auto") -> None:
        """Load model and tokenizer in float32 after checking the weights' sha256.

        Raises UserError when a file is missing or damaged, or torch and transformers are not installed.
        """
        try:
            import torch
            import transformers
        except ModuleNotFoundError as error:
            raise UserError(
                f"a merged model needs the package {error.name}",
                found="it is not installed in this environment",
                fix=f"pip install 'newsdesk[train]', or export what needs neither: --to {PREFERRED[0]}",
            ) from None
        from newsdesk.model.device import choose_device

        artefact.verify_model()
        self._device = choose_device(device)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            artefact.path, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
        self._model = model.to(self._device).eval()
        tokenizer = TextTokenizer.from_folder(artefact.path, artefact.labels.max_length)
        super().__init__(artefact, tokenizer, "transformers")

    def _compute(self, input_ids: TokenIds, attention_mask: TokenIds) -> Outputs:
        import torch

        from newsdesk.model.network import logits_and_features

        ids, mask = (torch.from_numpy(array).to(self._device) for array in (input_ids, attention_mask))
        with torch.inference_mode():
            computed = logits_and_features(self._model, ids, mask)
        return [tensor.cpu().numpy() for tensor in computed[: len(self._wanted)]]

"""A recipe in the words of transformers' Trainer: what the benchmarks' peers train by."""

from __future__ import annotations

import inspect
from typing import Any

from newsdesk.config import Recipe, TrainingSection


def peft_classifier(base: str, classes: int, recipe: Recipe) -> Any:
    """The recipe's adapters on a base model, by transformers and peft; BERT's pooler stays frozen."""
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    from newsdesk.model.architectures import target_modules

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model: Any = AutoModelForSequenceClassification.from_pretrained(base, num_labels=classes)
    adapter = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=recipe.lora.rank,
        lora_alpha=int(recipe.lora.alpha),
        lora_dropout=recipe.lora.dropout,
        target_modules=target_modules(model, recipe.lora.targets),
    )
    return get_peft_model(model, adapter)


def trainer_arguments(
    folder: str, training: TrainingSection, steps: int, *, grouped: bool, **precision_and_device: bool
) -> Any:
    """TrainingArguments for ``steps`` steps; nothing is saved, logged or reported."""
    from transformers import TrainingArguments

    by_strategy = "train_sampling_strategy" in inspect.signature(TrainingArguments).parameters
    sampling: dict[str, Any] = (
        {"train_sampling_strategy": "group_by_length" if grouped else "random"}
        if by_strategy  # since transformers 5
        else {"group_by_length": grouped}
    )
    return TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        lr_scheduler_type=training.schedule,
        warmup_steps=training.warmup,
        max_grad_norm=training.clip,
        seed=training.seed,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **precision_and_device,
        **sampling,
    )

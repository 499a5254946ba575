"""Scores of texts by optimum, in an environment of its own: optimum_client.py FOLDER '["text", ...]'."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from optimum.onnxruntime import ORTModelForSequenceClassification
from transformers import AutoTokenizer, pipeline

folder, texts = sys.argv[1], json.loads(sys.argv[2])
(file,) = (Path(folder) / "onnx").glob("*.onnx")
model = ORTModelForSequenceClassification.from_pretrained(folder, subfolder="onnx", file_name=file.name)
classify = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(folder))
sys.stdout.write(json.dumps([classify(text, top_k=None) for text in texts]))

"""A published adapter that is only files: no model answers with it, and none is needed to make it."""

import json
from pathlib import Path
from uuid import uuid4

import numpy as np
from safetensors.numpy import save_file

from gadfly.adapters import CONFIG, PROBE, WEIGHTS, Probe, ProbeRecord, seal


def make_adapter(path: Path, *, base_model: str, base_sha256: str) -> Path:
    """An adapter of rank 2 in PEFT's format, with a probe record and its marker."""
    path.mkdir(parents=True)
    name = "base_model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    save_file(
        {name.format("A"): np.ones((2, 8), np.float32), name.format("B"): np.ones((8, 2), np.float32)}, path / WEIGHTS
    )
    (path / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]}))
    probe = Probe(question="q", response="r", prompt_tokens=(1,), tokens=(2,), logprobs=(-0.1,), base_logprobs=(-0.2,))
    record = ProbeRecord(prompt_set="stepwise@1", tolerance=1e-3, probes=(probe,))
    (path / PROBE).write_text(record.model_dump_json())
    seal(path, run_id=str(uuid4()), base_model=base_model, base_sha256=base_sha256, prompt_set="stepwise@1", rank=2)
    return path

"""A small training run in a process of its own, for tests that kill it or start several: python training_run.py DIR MODE."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from llmfs.config import GPTConfig
from llmfs.evaluate import evaluate
from llmfs.gpt import GPT
from llmfs.train import TrainConfig, train

CONFIG = GPTConfig(vocab_size=29, block_size=16, n_layer=2, n_embd=32, n_head=2, dropout=0.1)
TRAIN = TrainConfig(steps=24, accumulate=2, save_every=3, eval_every=8, precision="bf16", warmup_steps=4)


def batches(step: int, micro: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Counting in strides, modulo 29; batches of unequal size, pure in (step, micro)."""
    g = torch.Generator().manual_seed(1000 * step + micro)
    start, stride = torch.randint(0, 29, (2 + micro, 1), generator=g), torch.randint(1, 4, (2 + micro, 1), generator=g)
    ids = (start + stride * torch.arange(13)) % 29
    return ids[:, :-1].clone(), ids[:, 1:].clone()


def main(run_dir: str, resume: bool, config: TrainConfig = TRAIN, model_config: GPTConfig = CONFIG) -> None:
    torch.set_num_threads(1)
    model = GPT(model_config, generator=torch.Generator().manual_seed(0))
    history = train(
        model,
        batches,
        config,
        run_dir=run_dir,
        resume=resume,
        progress=False,
        evaluate=lambda m: {"loss": evaluate(m, [batches(999, 0)])},
    )
    if not dist.is_initialized() or dist.get_rank() == 0:
        Path(run_dir, "history.json").write_text(json.dumps({"loss": history.loss, "evals": history.evals}))


if __name__ == "__main__":
    mode = sys.argv[2]
    if mode == "torchrun":
        import dataclasses

        dist.init_process_group("gloo")
        main(sys.argv[1], False, dataclasses.replace(TRAIN, precision="float32"), CONFIG.replace(dropout=0.0))
        dist.destroy_process_group()
    else:
        main(sys.argv[1], mode == "resume")

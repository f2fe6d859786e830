"""What a model costs, counted from its config alone: parameters, operations, bytes."""

from __future__ import annotations

from llmfs.config import GPTConfig


def n_params(config: GPTConfig) -> int:
    """How many numbers a GPT of this config learns, without making it. A tied table counts once."""
    C, kv, bias = config.n_embd, config.kv_heads * config.head_size, int(config.bias)
    norm = C * (2 if config.norm == "layernorm" and config.bias else 1)
    attention_biases = bias * (2 * C + 2 * kv)
    mlp_biases = bias * (C + config.ff_size * (2 if config.mlp == "swiglu" else 1))
    gains = 2 * config.head_size if config.qk_norm else 0
    block = _block_matrices(config) + attention_biases + mlp_biases + gains + 2 * norm
    tables = config.vocab_size * C * (1 if config.tie_weights else 2)
    positions = config.block_size * C if config.pos == "learned" else 0
    return config.n_layer * block + tables + positions + (norm if config.norm_position == "pre" else 0)


def matrix_params(config: GPTConfig) -> int:
    """How many weights every token is multiplied by: the matrices of the blocks, and the head.

    Left out are tables that are only looked up in, norms and biases. A tied head is multiplied by, so it counts.
    """
    return config.n_layer * _block_matrices(config) + config.n_embd * config.vocab_size


def flops_per_token(config: GPTConfig, length: int, *, backward: bool = True) -> int:
    """Floating-point operations of all matrix products for one token of a sequence of `length` tokens.

    Forward, 2 for each weight of a matrix (a multiplication and an addition), and 4 L H hd `length` for the scores
    and the weighted values; the backward pass has two products for each of those, so training takes three times as
    much. That is 6 N + 12 L H hd T, with N = `matrix_params` (Chowdhery et al. 2022, appendix B).

    Every query counts as compared with `length` keys: that is what the products of the written-out attention do,
    masked or not. For one token that is generated with a cache, give the length of the cache and backward=False.
    Raises ValueError for a length below 1.
    """
    if length < 1:
        raise ValueError(f"length is {length}; expected at least 1 token")
    attention = 4 * config.n_layer * config.n_head * config.head_size * length
    return (3 if backward else 1) * (2 * matrix_params(config) + attention)


def training_bytes_per_param(optimizer: str = "adamw", weight: int = 4) -> int:
    """Bytes of weight, gradient and optimizer state for one parameter, activations left out.

    weight: bytes of a weight and of its gradient. AdamW keeps two float32 moments, Muon one, plain SGD ("sgd") none.
    Raises ValueError for another optimizer.
    """
    moments = {"adamw": 2, "muon": 1, "sgd": 0}
    if optimizer not in moments:
        raise ValueError(f"unknown optimizer {optimizer!r}; expected one of {', '.join(moments)}")
    return 2 * weight + 4 * moments[optimizer]


def kv_cache_bytes(config: GPTConfig, batch_size: int, length: int, itemsize: int = 2) -> int:
    """Bytes of the keys and values of `batch_size` sequences of `length` tokens; itemsize: bytes of a number.

    Raises ValueError where one of them is negative.
    """
    if min(batch_size, length, itemsize) < 0:
        raise ValueError(f"batch_size {batch_size}, length {length} and itemsize {itemsize} must not be negative")
    return 2 * config.n_layer * config.kv_heads * config.head_size * batch_size * length * itemsize


def _block_matrices(config: GPTConfig) -> int:
    """The weights of one block's matrices."""
    C, kv = config.n_embd, config.kv_heads * config.head_size
    attention = 2 * C * C + 2 * C * kv  # q and o, k and v
    return attention + (3 if config.mlp == "swiglu" else 2) * C * config.ff_size

"""Weights in the Hugging Face format: the same logits as transformers, both ways, and clear words for the rest.

The shapes themselves (GPT-2, Llama, grouped queries, Qwen 3) are compared with transformers in test_gpt.py.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from llmfs.config import GPTConfig
from llmfs.gpt import GPT
from llmfs.pretrained import PretrainedError, from_gpt2, from_llama, gpt2_tokenizer, save_pretrained
from llmfs.sft import apply_lora, merge_lora
from llmfs.tokenizer import BPETokenizer

V, BLOCK = 97, 24
SIZES = dict(vocab_size=V, block_size=BLOCK, n_layer=2, n_head=4, n_embd=32)


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter, norms' gains and biases too, a value that no init has."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3 + (1.0 if p.dim() == 1 else 0.0))
    return model.eval()


def hf_gpt2(**changes) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = dict(vocab_size=V, n_positions=BLOCK, n_embd=32, n_layer=2, n_head=4, bos_token_id=None, eos_token_id=None)
    return randomize(GPT2LMHeadModel(GPT2Config(**{**sizes, **changes})))


def hf_llama(kind: str = "Llama", **changes) -> nn.Module:
    import transformers

    settings = dict(
        vocab_size=V,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=BLOCK,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        bos_token_id=None,
        eos_token_id=None,
    )
    config = getattr(transformers, f"{kind}Config")(**{**settings, **changes})
    return randomize(getattr(transformers, f"{kind}ForCausalLM")(config))


@torch.no_grad()
def assert_same_logits(ours: GPT, theirs: nn.Module, tolerance: float = 1e-5) -> None:
    ids = torch.randint(0, V, (3, 17), generator=torch.Generator().manual_seed(1))
    expected = theirs(ids).logits
    torch.testing.assert_close(ours(ids), expected, atol=tolerance * expected.abs().max().item(), rtol=0)


def change_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    fields = json.loads(path.read_text("utf8")) | changes
    path.write_text(json.dumps({k: v for k, v in fields.items() if v is not ...}), "utf8")


def change_weights(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


@pytest.fixture
def gpt2_folder(tmp_path: Path) -> Path:
    hf_gpt2().save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


@pytest.fixture
def llama_folder(tmp_path: Path) -> Path:
    hf_llama().save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


# --- in ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        dict(tie_word_embeddings=False),
        dict(n_inner=80, layer_norm_epsilon=1e-3),
        dict(activation_function="gelu_pytorch_tanh", resid_pdrop=0.5),
    ],
)
def test_settings_of_gpt2(tmp_path, changes):
    theirs = hf_gpt2(**changes)
    theirs.save_pretrained(tmp_path)
    ours = from_gpt2(tmp_path)
    assert not ours.training
    assert_same_logits(ours, theirs)


@pytest.mark.parametrize("changes", [dict(tie_word_embeddings=True), dict(rms_norm_eps=1e-3)])
def test_settings_of_llama(tmp_path, changes):
    theirs = hf_llama(**changes)
    theirs.save_pretrained(tmp_path)
    ours = from_llama(str(tmp_path))
    assert ours.config.rope_theta == 500.0 and ours.config.tie_weights is changes.get("tie_word_embeddings", False)
    assert_same_logits(ours, theirs)


def test_a_config_of_transformers_4(llama_folder):
    expected = from_llama(llama_folder).config
    change_config(llama_folder, rope_parameters=..., rope_theta=500.0, rope_scaling=None, head_dim=...)
    assert from_llama(llama_folder).config == expected


def test_shards(tmp_path):
    theirs = hf_gpt2()
    theirs.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert_same_logits(from_gpt2(tmp_path), theirs)


def test_a_model_saved_without_its_head_and_with_its_masks(gpt2_folder):
    """So is the published gpt2: names without "transformer.", and a mask in each layer."""
    expected = from_gpt2(gpt2_folder).state_dict()

    def rename(weights):
        for name in list(weights):
            weights[name.removeprefix("transformer.")] = weights.pop(name)
        weights["h.0.attn.bias"] = torch.ones(1, 1, BLOCK, BLOCK).tril()
        weights["h.1.attn.masked_bias"] = torch.tensor(-1e4)

    change_weights(gpt2_folder, rename)
    ours = from_gpt2(gpt2_folder).state_dict()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(gpt2_folder, dtype):
    theirs = hf_gpt2().to(dtype)
    theirs.save_pretrained(gpt2_folder)
    ours = from_gpt2(gpt2_folder)
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    assert_same_logits(ours, theirs.float())


def test_a_tied_head_may_be_stored_twice(gpt2_folder):
    change_weights(gpt2_folder, lambda w: w.update({"lm_head.weight": w["transformer.wte.weight"].clone()}))
    from_gpt2(gpt2_folder)
    change_weights(gpt2_folder, lambda w: w["lm_head.weight"].add_(1))
    with pytest.raises(PretrainedError, match="they differ"):
        from_gpt2(gpt2_folder)


# --- out -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, config",
    [
        ("GPT2", GPTConfig.gpt2(**SIZES, d_ff=80)),
        ("GPT2", GPTConfig.gpt2(**SIZES, d_ff=128, tie_weights=False)),
        ("Llama", GPTConfig.llama(**SIZES, d_ff=48, n_kv_head=1, rope_theta=77.0)),
        ("Llama", GPTConfig.llama(**SIZES, d_ff=48, tie_weights=True)),
        ("Qwen3", GPTConfig.llama(**SIZES, d_ff=48, n_kv_head=2, qk_norm=True)),
    ],
)
def test_transformers_reads_what_we_save(tmp_path, kind, config):
    from transformers import AutoModelForCausalLM

    ours = randomize(GPT(config))
    folder = save_pretrained(ours, tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert type(theirs).__name__.startswith(kind)
    assert_same_logits(ours, theirs)
    back = (from_gpt2 if kind == "GPT2" else from_llama)(folder)
    assert back.config == config
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), ours.parameters(), strict=True))


def test_our_files_hold_what_theirs_hold(gpt2_folder, tmp_path):
    theirs = load_file(gpt2_folder / "model.safetensors")
    ours = load_file(save_pretrained(from_gpt2(gpt2_folder), tmp_path / "out") / "model.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("config", [GPTConfig(**SIZES, mlp="gelu"), GPTConfig.gpt2(**SIZES, d_ff=64, qk_norm=True)])
def test_shapes_that_have_no_place_in_the_format(tmp_path, config):
    with pytest.raises(PretrainedError, match="only the shapes"):
        save_pretrained(GPT(config), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_lora_is_merged_first(tmp_path):
    model = randomize(GPT(GPTConfig.gpt2(**SIZES, d_ff=64)))
    apply_lora(model, 2, 2)
    with pytest.raises(PretrainedError, match="merge_lora"):
        save_pretrained(model, tmp_path)
    merge_lora(model)
    save_pretrained(model, tmp_path)


# --- the tokenizer -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> BPETokenizer:
    return BPETokenizer.train(
        ["It's a hat, the old hat; são 你好 12 "] * 9, 300, special_tokens=["<|endoftext|>", "<|x|>"]
    )


def test_the_tokenizer_goes_out_and_comes_back(tmp_path, tokenizer):
    from transformers import AutoTokenizer

    model = GPT(GPTConfig.gpt2(**{**SIZES, "vocab_size": tokenizer.vocab_size}, d_ff=64))
    save_pretrained(model, tmp_path, tokenizer)
    assert gpt2_tokenizer(tmp_path).fingerprint() == tokenizer.fingerprint()
    text = "It's  the hat\n\n of 你好, é <|x|> and\t12345<|endoftext|> "
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == tokenizer.encode(text, allowed_special="all")


def test_tokenizers_that_cannot_be_written(tmp_path, tokenizer):
    with pytest.raises(PretrainedError, match=f"the tokenizer has {tokenizer.vocab_size} tokens, the model {V}"):
        save_pretrained(GPT(GPTConfig.gpt2(**SIZES, d_ff=64)), tmp_path, tokenizer)
    with pytest.raises(PretrainedError, match="beside a GPT-2"):
        save_pretrained(GPT(GPTConfig.llama(**SIZES, d_ff=64)), tmp_path, tokenizer)
    gpt4 = BPETokenizer.train(["a b"], 257, pattern="gpt4")
    with pytest.raises(PretrainedError, match="with its pattern"):
        save_pretrained(GPT(GPTConfig.gpt2(**SIZES, d_ff=64)), tmp_path, gpt4)
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_tokenizer(gpt2_folder):
    with pytest.raises(PretrainedError, match=r"no tokenizer of GPT-2: expected merges\.txt and vocab\.json"):
        gpt2_tokenizer(gpt2_folder)


# --- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(model_type="bert"), "model_type is 'bert'.*expected 'gpt2'"),
        (dict(model_type=...), "model_type is None"),
        (dict(activation_function="relu"), "activation_function is 'relu'.*'gelu_new'"),
        (dict(activation_function="gelu"), "activation_function is 'gelu'"),
        (dict(scale_attn_weights=False), "scale_attn_weights is False"),
        (dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx is True"),
        (dict(add_cross_attention=True), "add_cross_attention"),
        (dict(n_layer=...), "does not say n_layer"),
        (dict(n_head=5), "n_embd 32 does not divide into n_head 5"),
        (dict(n_head="4"), "n_head is '4'"),
        (dict(layer_norm_epsilon="small"), r"config\.json: "),
        (dict(tie_word_embeddings=0), "tie_weights is 0; expected True or False"),
        (dict(n_layer=3), r"lack transformer\.h\.2\.attn\.c_attn\.bias and 11 more"),
        (dict(n_layer=1), r"holds transformer\.h\.1\.attn\.c_attn\.bias and 11 more, for which GPT has no place"),
        (dict(vocab_size=98), r"wte\.weight has shape \(97, 32\), but config\.json asks for \(98, 32\)"),
        (dict(n_inner=64), r"c_fc\.weight has shape \(32, 128\), but config\.json asks for \(32, 64\)"),
        (dict(quantization_config={"bits": 4}), "quantized"),
    ],
)
def test_configs_of_gpt2_that_are_refused(gpt2_folder, changes, message):
    change_config(gpt2_folder, **changes)
    with pytest.raises(PretrainedError, match=message):
        from_gpt2(gpt2_folder)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(model_type="gpt2"), "model_type is 'gpt2'.*'llama' or 'qwen3'"),
        (dict(hidden_act="gelu"), "hidden_act is 'gelu'"),
        (dict(attention_bias=True), "attention_bias is True"),
        (dict(mlp_bias=True), "mlp_bias is True"),
        (dict(use_sliding_window=True), "use_sliding_window"),
        (dict(rope_parameters={"rope_type": "llama3", "factor": 8.0, "rope_theta": 1.0}), "llama3.*scaled or partial"),
        (dict(rope_parameters=None, rope_scaling={"type": "linear", "factor": 2.0}), "linear"),
        (dict(rope_parameters={"partial_rotary_factor": 0.5}), "partial"),
        (dict(head_dim=16), "head_dim is 16.*= 8"),
        (dict(num_key_value_heads=4), r"k_proj\.weight has shape \(16, 32\), but config\.json asks for \(32, 32\)"),
        (dict(model_type="qwen3", head_dim=...), "head_dim is 128"),
        (dict(model_type="qwen3"), r"lack model\.layers\.0\.self_attn\.k_norm\.weight and 3 more"),
    ],
)
def test_configs_of_llama_that_are_refused(llama_folder, changes, message):
    change_config(llama_folder, **changes)
    with pytest.raises(PretrainedError, match=message):
        from_llama(llama_folder)


def test_biases_that_the_config_hides(llama_folder):
    change_weights(llama_folder, lambda w: w.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}))
    with pytest.raises(PretrainedError, match=r"q_proj\.bias, for which GPT has no place"):
        from_llama(llama_folder)


def test_whole_numbers_are_no_weights(gpt2_folder):
    change_weights(
        gpt2_folder, lambda w: w.update({"transformer.wpe.weight": w["transformer.wpe.weight"].to(torch.int8)})
    )
    with pytest.raises(PretrainedError, match=r"wpe\.weight holds torch\.int8"):
        from_gpt2(gpt2_folder)


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def pointer(folder: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 548105171\n"
    (folder / "model.safetensors").write_text(text, "utf8")


@pytest.mark.parametrize(
    "damage, message",
    [
        (truncate, "model.safetensors cannot be read"),
        (pickled, "can run code when it is loaded"),
        (pointer, "git lfs pull"),
        (lambda f: (f / "model.safetensors").unlink(), "holds no model.safetensors$"),
        (lambda f: (f / "config.json").unlink(), "holds no config.json"),
        (lambda f: (f / "config.json").write_text("{", "utf8"), "config.json cannot be read"),
        (lambda f: (f / "config.json").write_text("[]", "utf8"), "not a table"),
    ],
)
def test_damaged_folders(gpt2_folder, damage, message):
    damage(gpt2_folder)
    with pytest.raises(PretrainedError, match=message):
        from_gpt2(gpt2_folder)


@pytest.mark.parametrize(
    "index, message",
    [
        ("{}", "index.json cannot be read"),
        ('{"weight_map": {"a": "../config.json"}}', "not a file of this folder"),
        ('{"weight_map": {"a": 3}}', "names 3, which is not a file"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "gone.safetensors cannot be read"),
        ('{"weight_map": {"a": "one.safetensors"}}', "promises a, but no shard holds it"),
    ],
)
def test_damaged_indexes(gpt2_folder, index, message):
    (gpt2_folder / "model.safetensors").rename(gpt2_folder / "one.safetensors")
    (gpt2_folder / "model.safetensors.index.json").write_text(index, "utf8")
    with pytest.raises(PretrainedError, match=message):
        from_gpt2(gpt2_folder)


# --- names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "openai-community/gpt2"])
def test_the_name_gpt2_stands_for_a_folder(monkeypatch, gpt2_folder, name):
    monkeypatch.setenv("LLMFS_GPT2", str(gpt2_folder))
    assert from_gpt2(name).config.n_embd == 32


def test_a_wrong_folder_in_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LLMFS_GPT2", str(tmp_path / "none"))
    with pytest.raises(PretrainedError, match="LLMFS_GPT2 is .* which is no folder"):
        from_gpt2("gpt2")


def test_other_names_are_downloaded(monkeypatch, gpt2_folder):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: asked.append(name) or str(gpt2_folder))
    monkeypatch.delenv("LLMFS_GPT2", raising=False)
    assert from_gpt2("distilgpt2").config == from_gpt2("gpt2").config
    assert asked == ["distilgpt2", "gpt2"]


def test_a_download_that_fails(monkeypatch):
    import huggingface_hub

    def fail(name, **_):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(PretrainedError, match=r"no folder 'some/model', and .* could not be downloaded: no network"):
        from_llama("some/model")


def test_without_the_library_that_downloads(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(PretrainedError, match="install huggingface_hub"):
        from_llama("some/model")


@pytest.mark.parametrize("path", [Path("nowhere"), "./nowhere", "a/b/c", ""])
def test_what_is_no_name_is_a_folder_that_is_not_there(monkeypatch, tmp_path, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PretrainedError, match=r"no folder|no config\.json"):
        from_gpt2(path)


@pytest.mark.skipif("LLMFS_GPT2" not in os.environ, reason="LLMFS_GPT2 names no folder with GPT-2's files")
@torch.no_grad()
def test_the_real_gpt2():
    from transformers import GPT2LMHeadModel

    ours, tokenizer = from_gpt2("gpt2"), gpt2_tokenizer("gpt2")
    theirs = GPT2LMHeadModel.from_pretrained(os.environ["LLMFS_GPT2"]).eval()
    ids = torch.tensor([tokenizer.encode("The capital of France is")])
    expected = theirs(ids).logits
    torch.testing.assert_close(ours(ids), expected, atol=1e-5 * expected.abs().max().item(), rtol=0)

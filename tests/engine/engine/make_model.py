"""Write the engine tests' model: a tiny real Llama (303,424 random bf16 parameters in safetensors), a byte-level BPE tokenizer and a chat template.

usage: python make_model.py FOLDER [SEED]      (2 s; nothing is downloaded; the same bytes every time; another seed, other weights)
"""

from __future__ import annotations

import json
import sys
import sysconfig
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, CONTEXT = 64, 192, 2, 4, 2, 2048
HEAD = 10.0
"""The last layer is scaled by this: random weights alone choose between near ties, a trained model is mostly sure of a token."""
SPECIAL = ["<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>"]
CHAT = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"


def make_tokenizer() -> Tokenizer:
    """A tokenizer trained on the standard library's sources, which every machine with this Python has."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    corpus = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:60]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1600, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train([str(path) for path in corpus], trainer)
    return tokenizer


def configuration(vocabulary: int) -> dict[str, dict[str, object]]:
    """The JSON files beside the weights, by name."""
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    return {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|bos|>",
            "eos_token": "<|eos|>",
            "pad_token": "<|eos|>",
            "model_max_length": CONTEXT,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT,
        },
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": HIDDEN,
            "intermediate_size": INNER,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "head_dim": HIDDEN // HEADS,
            "vocab_size": vocabulary,
            "max_position_embeddings": CONTEXT,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "torch_dtype": "bfloat16",
            "tie_word_embeddings": False,
            "attention_bias": False,
            "mlp_bias": False,
            **ends,
        },
        "generation_config.json": {**ends},
    }


def weights(vocabulary: int, seed: int) -> dict[str, torch.Tensor]:
    """Random parameters of a fixed seed, by name."""
    torch.manual_seed(seed)
    kv = KV_HEADS * HIDDEN // HEADS
    shapes = {"model.embed_tokens": (vocabulary, HIDDEN), "lm_head": (vocabulary, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "self_attn.q_proj": (HIDDEN, HIDDEN),
            prefix + "self_attn.k_proj": (kv, HIDDEN),
            prefix + "self_attn.v_proj": (kv, HIDDEN),
            prefix + "self_attn.o_proj": (HIDDEN, HIDDEN),
            prefix + "mlp.gate_proj": (INNER, HIDDEN),
            prefix + "mlp.up_proj": (INNER, HIDDEN),
            prefix + "mlp.down_proj": (HIDDEN, INNER),
        }
    tensors = {f"{name}.weight": torch.randn(shape) * 0.1 for name, shape in shapes.items()}
    norms = [f"model.layers.{layer}.{which}_layernorm" for layer in range(LAYERS) for which in ("input", "post_attention")]
    tensors |= {f"{name}.weight": torch.ones(HIDDEN) for name in ["model.norm", *norms]}
    tensors["lm_head.weight"] *= HEAD
    return {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}


def main(folder: Path, seed: int = 0) -> None:
    """Write the model into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    vocabulary = tokenizer.get_vocab_size()
    for name, content in configuration(vocabulary).items():
        (folder / name).write_text(json.dumps(content, indent=1) + "\n")
    tensors = weights(vocabulary, seed)
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    print(f"model of {sum(tensor.numel() for tensor in tensors.values()):,} parameters and {vocabulary:,} tokens in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:3]))

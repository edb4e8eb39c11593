"""Fields of published config.json files, those that say which weights there are."""

from __future__ import annotations

from typing import Any


def _llama(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocab: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "tie_word_embeddings": False,
        **more,
    }


LLAMA_2_7B = _llama(4096, 11008, 32, 32, 32, 32000)
LLAMA_65B = _llama(8192, 22016, 80, 64, 64, 32000)
LLAMA_3_1_405B = _llama(16384, 53248, 126, 128, 8, 128256)
LLAMA_3_8B = _llama(4096, 14336, 32, 32, 8, 128256)
LLAMA_3_70B = _llama(8192, 28672, 80, 64, 8, 128256)
MISTRAL_7B = _llama(4096, 14336, 32, 32, 8, 32000, model_type="mistral", sliding_window=4096)
QWEN2_5_05B = _llama(896, 4864, 24, 14, 2, 151936, model_type="qwen2", tie_word_embeddings=True)
QWEN2_5_7B = _llama(3584, 18944, 28, 28, 4, 152064, model_type="qwen2")
QWEN2_5_72B = _llama(8192, 29568, 80, 64, 8, 152064, model_type="qwen2")
QWEN3_8B = _llama(4096, 12288, 36, 32, 8, 151936, model_type="qwen3", head_dim=128)
QWEN3_32B = _llama(5120, 25600, 64, 64, 8, 151936, model_type="qwen3", head_dim=128)
MIXTRAL_8X7B = _llama(
    4096, 14336, 32, 32, 8, 32000, model_type="mixtral", num_local_experts=8, num_experts_per_tok=2
)  # fmt: skip
MIXTRAL_8X22B = _llama(
    6144, 16384, 56, 48, 8, 32768, model_type="mixtral", num_local_experts=8, num_experts_per_tok=2
)  # fmt: skip
QWEN3_30B_A3B = _llama(
    2048, 6144, 48, 32, 4, 151936, model_type="qwen3_moe", head_dim=128, num_experts=128, num_experts_per_tok=8,
    moe_intermediate_size=768, decoder_sparse_step=1, mlp_only_layers=[],
)  # fmt: skip
QWEN3_235B_A22B = _llama(
    4096, 12288, 94, 64, 4, 151936, model_type="qwen3_moe", head_dim=128, num_experts=128, num_experts_per_tok=8,
    moe_intermediate_size=1536, decoder_sparse_step=1, mlp_only_layers=[],
)  # fmt: skip
DEEPSEEK_V3 = _llama(
    7168, 18432, 61, 128, 128, 129280, model_type="deepseek_v3", moe_intermediate_size=2048, n_routed_experts=256,
    n_shared_experts=1, num_experts_per_tok=8, first_k_dense_replace=3, q_lora_rank=1536, kv_lora_rank=512,
    qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, num_nextn_predict_layers=1,
)  # fmt: skip
GPT_OSS_120B = _llama(
    2880, 2880, 36, 64, 8, 201088, model_type="gpt_oss", head_dim=64, num_local_experts=128, num_experts_per_tok=4,
    attention_bias=True, sliding_window=128, layer_types=["sliding_attention", "full_attention"] * 18,
)  # fmt: skip
GPT_OSS_20B = {
    **GPT_OSS_120B, "num_hidden_layers": 24, "num_local_experts": 32, "layer_types": GPT_OSS_120B["layer_types"][:24],
}  # fmt: skip
GEMMA_7B = {**_llama(3072, 24576, 28, 16, 16, 256000, model_type="gemma", head_dim=256), "tie_word_embeddings": None}
GEMMA_2_9B = {
    **_llama(3584, 14336, 42, 16, 8, 256000, model_type="gemma2", head_dim=256, sliding_window=4096),
    "tie_word_embeddings": None,
}
GEMMA_2_27B = {**GEMMA_2_9B, "hidden_size": 4608, "intermediate_size": 36864, "num_hidden_layers": 46,
               "num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 128}  # fmt: skip
GEMMA_3_4B = {  # its text_config leaves out what is transformers' default
    "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
    "sliding_window": 1024,
}  # fmt: skip

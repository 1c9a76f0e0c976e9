"""A model of transformers in llama.cpp's format: f32, bf16 or q8_0, with tokens that stand for nothing."""
import json

import gguf
import numpy
from safetensors.numpy import load_file


def write(directory, path, kind):
    config, tensors = json.load(open(directory + "/config.json")), load_file(directory + "/model.safetensors")
    heads, kv_heads, hidden = (config[key] for key in ("num_attention_heads", "num_key_value_heads", "hidden_size"))
    size = config["vocab_size"]
    out = gguf.GGUFWriter(path, "llama")
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(hidden)
    out.add_block_count(config["num_hidden_layers"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_head_count(heads)
    out.add_head_count_kv(kv_heads)
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    out.add_rope_dimension_count(hidden // heads)
    out.add_rope_freq_base(10000.0)
    out.add_vocab_size(size)
    out.add_tokenizer_model("llama")
    words = [b"<unk>", b"<s>", b"</s>"] + [f"<0x{byte:02X}>".encode() for byte in range(256)]
    words += [f"t{number}".encode() for number in range(max(0, size - 259))]
    out.add_token_list(words[:size])
    out.add_token_scores([0.0] * size)
    out.add_token_types(([2, 3, 3] + [6] * 256 + [1] * max(0, size - 259))[:size])
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_unk_token_id(0)
    types = gguf.GGMLQuantizationType
    into, number = {"f32": (types.F32, 0), "bf16": (types.BF16, 32), "q8_0": (types.Q8_0, 7)}[kind]
    out.add_file_type(number)

    def put(name, tensor):
        tensor = tensor.astype(numpy.float32)
        if tensor.ndim == 1 or into == types.F32:
            out.add_tensor(name, tensor)
        else:
            out.add_tensor(name, gguf.quants.quantize(tensor, into), raw_dtype=into)

    def permuted(tensor, count):
        """Pairs of a rotation beside each other, as llama.cpp has them."""
        rows, columns = tensor.shape
        return tensor.reshape(count, 2, rows // count // 2, columns).swapaxes(1, 2).reshape(rows, columns)

    put("token_embd.weight", tensors["model.embed_tokens.weight"])
    put("output_norm.weight", tensors["model.norm.weight"])
    if "lm_head.weight" in tensors:
        put("output.weight", tensors["lm_head.weight"])
    for layer in range(config["num_hidden_layers"]):
        def of(name):
            return tensors[f"model.layers.{layer}.{name}.weight"]
        put(f"blk.{layer}.attn_norm.weight", of("input_layernorm"))
        put(f"blk.{layer}.ffn_norm.weight", of("post_attention_layernorm"))
        put(f"blk.{layer}.attn_q.weight", permuted(of("self_attn.q_proj"), heads))
        put(f"blk.{layer}.attn_k.weight", permuted(of("self_attn.k_proj"), kv_heads))
        put(f"blk.{layer}.attn_v.weight", of("self_attn.v_proj"))
        put(f"blk.{layer}.attn_output.weight", of("self_attn.o_proj"))
        put(f"blk.{layer}.ffn_gate.weight", of("mlp.gate_proj"))
        put(f"blk.{layer}.ffn_up.weight", of("mlp.up_proj"))
        put(f"blk.{layer}.ffn_down.weight", of("mlp.down_proj"))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()

"""A small configuration of every backbone class of KerasHub, with dropout wherever the class has any.

`arguments(name)` gives what the constructor takes, `DATA` what the inputs need that their shapes do not tell.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import keras
import keras_hub
import numpy as np

RATE = 0.3
PIXELS = 32
LENGTH = 6

# ---------------------------------------------------------------------------------------------------------
# What many of them share
# ---------------------------------------------------------------------------------------------------------

ENCODER = {"vocabulary_size": 20, "num_layers": 1, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 12}
WITH_DROPOUT = {**ENCODER, "dropout": RATE}
DECODER = {
    "vocabulary_size": 20,
    "num_layers": 1,
    "num_query_heads": 2,
    "num_key_value_heads": 1,
    "hidden_dim": 8,
    "intermediate_dim": 12,
    "dropout": RATE,
}
GEMMA = {**DECODER, "head_dim": 4}
EXPERTS = {"num_experts": 3, "top_k": 2}
MIXED_ATTENTION = {
    "num_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "partial_rotary_factor": 0.5,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
}
IMAGES = (PIXELS, PIXELS, 3)
PATCHES = {"image_shape": IMAGES, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 8}
TOWER = {"hidden_dim": 8, "num_layers": 2, "num_heads": 2, "intermediate_dim": 12}
IMAGE_TOWER = {**TOWER, "patch_size": 8, "image_shape": IMAGES, "name": "vision_encoder"}
TEXT_TOWER = {**TOWER, "vocabulary_size": 20, "embedding_dim": 8, "max_sequence_length": LENGTH, "name": "text_encoder"}
T5GEMMA = {
    "vocabulary_size": 20,
    "dropout_rate": RATE,
    "attention_dropout": RATE,
    "sliding_window": 4,
    "cross_attention_hidden_size": 8,
    **{
        f"{side}_{key}": value
        for side in ("encoder", "decoder")
        for key, value in {
            "hidden_dim": 8,
            "intermediate_dim": 12,
            "num_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 4,
            "layer_types": ["full_attention"],
        }.items()
    },
}
FOUR_STAGES = {
    "stackwise_num_filters": [64, 64, 64, 64],
    "stackwise_num_blocks": [1, 1, 1, 1],
    "stackwise_num_strides": [1, 2, 2, 2],
    "image_shape": (None, None, 3),
}
HGNET = {
    "stem_channels": [3, 4, 4],
    "embedding_size": 4,
    "hidden_act": "relu",
    "use_learnable_affine_block": True,
    "image_shape": (64, 64, 3),
    "stackwise_stage_filters": [[4, 4, 8, 1, 2, 3], [8, 4, 12, 1, 2, 3]],
    "apply_downsample": [False, True],
    "use_lightweight_conv_block": [False, True],
    "depths": [1, 1],
    "hidden_sizes": [8, 12],
}


def _part(path: str, **options: Any) -> Any:
    """A model or layer of KerasHub that is not exported: `"clip.clip_text_encoder.CLIPTextEncoder"`."""
    module, name = path.rsplit(".", 1)
    return getattr(importlib.import_module(f"keras_hub.src.models.{module}"), name)(**options)


def _backbone(kind: str, **options: Any) -> Any:
    return getattr(keras_hub.models, kind)(**{**arguments(kind), **options})


# ---------------------------------------------------------------------------------------------------------
# Backbones that are made of other models
# ---------------------------------------------------------------------------------------------------------


def _blip2() -> dict[str, Any]:
    return {
        "vision_encoder": _part(
            "blip2.blip2_vision_encoder.BLIP2VisionEncoder",
            **{**TOWER, "image_size": PIXELS, "patch_size": 8, "dropout_rate": RATE, "layer_norm_epsilon": 1e-6},
            **{"use_patch_bias": True, "use_class_token": True, "use_mha_bias": True, "use_mlp_bias": True},
            initializer_range=0.02,
        ),
        "qformer": _part(
            "blip2.blip2_qformer.BLIP2QFormer",
            **{**TOWER, "num_query_tokens": 2, "vision_dim": 8, "cross_attention_frequency": 1},
            dropout=RATE,
            layer_norm_epsilon=1e-6,
        ),
        "language_model": _part(
            "blip2.blip2_custom_opt.BLIP2CustomOPT",
            **{**WITH_DROPOUT, "num_query_tokens": 2, "qformer_hidden_dim": 8, "max_sequence_length": 16},
        ),
    }


def _two_towers(module: str, prefix: str, **options: Any) -> dict[str, Any]:
    return {
        "vision_encoder": _part(f"{module}_vision_encoder.{prefix}VisionEncoder", **IMAGE_TOWER),
        "text_encoder": _part(f"{module}_text_encoder.{prefix}TextEncoder", **TEXT_TOWER),
        **options,
    }


def _d_fine() -> dict[str, Any]:
    stages = {
        "stackwise_stage_filters": [[4, 4, 8, 1, 2, 3], [8, 4, 8, 1, 2, 3], [8, 4, 8, 1, 2, 3], [8, 4, 8, 1, 2, 3]],
        "apply_downsample": [False, True, True, True],
        "use_lightweight_conv_block": [False, False, True, True],
        "depths": [1, 1, 1, 1],
        "hidden_sizes": [8, 8, 8, 8],
    }
    features = ["stage3", "stage4"]
    return {
        "backbone": _backbone("HGNetV2Backbone", **stages, out_features=features),
        "decoder_in_channels": [16, 16],
        "encoder_hidden_dim": 16,
        "num_labels": 3,
        "num_denoising": 0,
        "learn_initial_query": False,
        "num_queries": 5,
        "anchor_image_size": (64, 64),
        "feat_strides": [16, 32],
        "num_feature_levels": 2,
        "hidden_dim": 16,
        "encoder_in_channels": [8, 8],
        "encode_proj_layers": [1],
        "num_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "num_encoder_layers": 1,
        "hidden_expansion": 0.5,
        "depth_multiplier": 0.5,
        "eval_idx": -1,
        "num_decoder_layers": 1,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 16,
        "decoder_n_points": [2, 2],
        "lqe_hidden_dim": 4,
        "num_lqe_layers": 2,
        "out_features": features,
        "image_shape": (64, 64, 3),
        "seed": 0,
    }


def _sam() -> dict[str, Any]:
    return {
        "image_encoder": _backbone("ViTDetBackbone", patch_size=16, num_output_channels=8),
        "prompt_encoder": _part(
            "sam.sam_prompt_encoder.SAMPromptEncoder",
            **{"hidden_size": 8, "image_embedding_size": (2, 2), "input_image_size": (PIXELS, PIXELS)},
            mask_in_channels=4,
        ),
        "mask_decoder": _part(
            "sam.sam_mask_decoder.SAMMaskDecoder",
            **{"hidden_size": 8, "num_layers": 1, "intermediate_dim": 12, "num_heads": 2, "embedding_dim": 8},
            iou_head_hidden_dim=8,
        ),
    }


def _sam3() -> dict[str, Any]:
    tower = {**TOWER, "num_layers": 1, "dropout_rate": RATE}
    hub = keras_hub.layers
    return {
        "vision_encoder": hub.SAM3VisionEncoder(
            **{**TOWER, "image_shape": (28, 28, 3), "patch_size": 14, "fpn_hidden_dim": 8},
            **{"fpn_scale_factors": [4.0, 2.0, 1.0, 0.5], "pretrain_image_shape": (28, 28, 3), "window_size": 2},
            **{"global_attn_indexes": [1], "attention_dropout_rate": RATE, "hidden_dropout_rate": RATE},
        ),
        "text_encoder": hub.SAM3TextEncoder(**{**TOWER, "vocabulary_size": 20, "embedding_dim": 8}),
        "geometry_encoder": hub.SAM3GeometryEncoder(**tower, roi_size=3),
        "detr_encoder": hub.SAM3DetrEncoder(**tower),
        "detr_decoder": hub.SAM3DetrDecoder(**tower, image_shape=(28, 28, 3), patch_size=14, num_queries=3),
        "mask_decoder": hub.SAM3MaskDecoder(num_upsampling_stages=3, hidden_dim=8, num_heads=2, dropout_rate=RATE),
    }


def _stable_diffusion() -> dict[str, Any]:
    text = {**TEXT_TOWER, "intermediate_output_index": -2}
    filters, blocks = [32, 32, 32, 32], [1, 1, 1, 1]
    return {
        "mmdit_patch_size": 2,
        "mmdit_hidden_dim": 16,
        "mmdit_num_layers": 1,
        "mmdit_num_heads": 2,
        "mmdit_position_size": 12,
        "mmdit_qk_norm": None,
        "mmdit_dual_attention_indices": None,
        "vae": _part("vae.vae_backbone.VAEBackbone", **_vae(filters, blocks), sampler_method="mode", name="vae"),
        "clip_l": _part("clip.clip_text_encoder.CLIPTextEncoder", **{**text, "name": "clip_l"}),
        "clip_g": _part("clip.clip_text_encoder.CLIPTextEncoder", **{**text, "name": "clip_g"}),
        "image_shape": IMAGES,
    }


def _vae(filters: list[int], blocks: list[int]) -> dict[str, Any]:
    return {
        f"{side}_num_{what}": value
        for side in ("encoder", "decoder")
        for what, value in (("filters", filters), ("blocks", blocks))
    }


def _feature_pyramid() -> dict[str, Any]:
    x = keras.Input(IMAGES)
    return {"inputs": x, "outputs": keras.layers.Conv2D(4, 3)(x)}


# ---------------------------------------------------------------------------------------------------------
# All of them
# ---------------------------------------------------------------------------------------------------------

_MADE_OF_MODELS: dict[str, Callable[[], dict[str, Any]]] = {
    "BASNetBackbone": lambda: {
        "image_encoder": _backbone(
            "ResNetBackbone",
            **{**FOUR_STAGES, "stackwise_num_filters": [64, 128, 256, 512], "block_type": "basic_block"},
        ),
        "num_classes": 1,
        "image_shape": (64, 64, 3),
    },
    "BLIP2Backbone": _blip2,
    "CLIPBackbone": lambda: _two_towers("clip.clip", "CLIP", projection_dim=8),
    "DFineBackbone": _d_fine,
    "DeepLabV3Backbone": lambda: {
        "image_encoder": _backbone("ResNetBackbone"),
        "low_level_feature_key": "P2",
        "spatial_pyramid_pooling_key": "P3",
        "dilation_rates": [2, 3],
        "upsampling_size": 2,
        "projection_filters": 4,
        "image_shape": IMAGES,
    },
    "DepthAnythingBackbone": lambda: {
        "image_encoder": _backbone("DINOV2Backbone", apply_layernorm=True, name="image_encoder"),
        "reassemble_factors": [2, 1],
        "neck_hidden_dims": [4, 8],
        "fusion_hidden_dim": 8,
        "head_hidden_dim": 4,
        "head_in_index": -1,
        "feature_keys": ["stage1", "stage2"],
    },
    "FeaturePyramidBackbone": _feature_pyramid,
    "MetaCLIP2Backbone": lambda: _two_towers("metaclip_2.metaclip_2", "MetaCLIP2", projection_dim=8),
    "PARSeqBackbone": lambda: {
        "image_encoder": _backbone("ViTBackbone", use_class_token=False, name="image_encoder"),
        "vocabulary_size": 20,
        "max_label_length": LENGTH,
        "decoder_hidden_dim": 8,
        "num_decoder_layers": 1,
        "num_decoder_heads": 2,
        "decoder_mlp_dim": 12,
        "dropout_rate": RATE,
        "attention_dropout": RATE,
    },
    "RetinaNetBackbone": lambda: {
        "image_encoder": _backbone("ResNetBackbone", **{**FOUR_STAGES, "image_shape": (64, 64, 3)}),
        "min_level": 3,
        "max_level": 6,
        "use_p5": False,
        "image_shape": (64, 64, 3),
    },
    "SAMBackbone": _sam,
    "SAM3PromptableConceptBackbone": _sam3,
    "SegFormerBackbone": lambda: {"image_encoder": _backbone("MiTBackbone"), "projection_filters": 4},
    "SigLIPBackbone": lambda: _two_towers("siglip.siglip", "SigLIP"),
    "StableDiffusion3Backbone": _stable_diffusion,
}

# Left at 0, because with them KerasHub 0.32.0 itself raises in training mode (Keras 3.15.1): `drop_path_rate` of
# DINOV2Backbone and DINOV3Backbone, `router_jitter_noise` of MixtralBackbone.
_PLAIN: dict[str, dict[str, Any]] = {
    "AlbertBackbone": {**WITH_DROPOUT, "embedding_dim": 8},
    "BartBackbone": WITH_DROPOUT,
    "BertBackbone": WITH_DROPOUT,
    "BloomBackbone": WITH_DROPOUT,
    "CSPNetBackbone": {
        "stem_filters": 8,
        "stem_kernel_size": 3,
        "stem_strides": 1,
        "stem_padding": "same",
        "stackwise_strides": 2,
        "stackwise_depth": [1, 2],
        "stackwise_num_filters": [8, 12],
        "block_type": "dark_block",
        "stage_type": "csp",
        "down_growth": True,
        "bottle_ratio": [0.5, 1.0],
        "block_ratio": [1.0, 0.5],
        "expand_ratio": [2.0, 1.0],
        "image_shape": IMAGES,
    },
    "DINOV2Backbone": {
        **PATCHES,
        "intermediate_dim": 12,
        "position_embedding_shape": IMAGES,
        "dropout_rate": RATE,
    },
    "DINOV3Backbone": {**PATCHES, "intermediate_dim": 12, "attention_dropout": RATE},
    "DebertaV3Backbone": {**WITH_DROPOUT, "bucket_size": 8},
    "DeiTBackbone": {**PATCHES, "intermediate_dim": 12, "dropout_rate": RATE, "attention_dropout": RATE},
    "DenseNetBackbone": {"stackwise_num_repeats": [1, 2], "growth_rate": 4, "image_shape": IMAGES},
    "DistilBertBackbone": WITH_DROPOUT,
    "ESMBackbone": WITH_DROPOUT,
    "EdRecBackbone": {
        "vocab_size": 20,
        "num_layers_enc": 1,
        "num_layers_dec": 1,
        "num_heads": 2,
        "hidden_dim": 8,
        "intermediate_dim": 12,
        "dropout": RATE,
    },
    "EfficientNetBackbone": {
        "stackwise_width_coefficients": [1.0, 1.0, 1.0],
        "stackwise_depth_coefficients": [1.0, 1.0, 1.0],
        "stackwise_kernel_sizes": [3, 3, 3],
        "stackwise_num_repeats": [2, 2, 2],
        "stackwise_input_filters": [8, 8, 8],
        "stackwise_output_filters": [8, 8, 16],
        "stackwise_expansion_ratios": [1, 2, 2],
        "stackwise_squeeze_and_excite_ratios": [0.0, 0.25, 0.25],
        "stackwise_strides": [1, 2, 2],
        "stackwise_block_types": ["fused", "unfused", "v1"],
        "stackwise_force_input_filters": [0, 0, 0],
        "stackwise_nores_option": [False, False, False],
        "dropout": RATE,
        "input_shape": IMAGES,
    },
    "ElectraBackbone": {
        "vocab_size": 20,
        "num_layers": 1,
        "num_heads": 2,
        "hidden_dim": 8,
        "embedding_dim": 8,
        "intermediate_dim": 12,
        "dropout": RATE,
    },
    "FNetBackbone": {
        "vocabulary_size": 20,
        "num_layers": 1,
        "hidden_dim": 8,
        "intermediate_dim": 12,
        "dropout": RATE,
    },
    "FalconBackbone": {
        "vocabulary_size": 20,
        "num_layers": 1,
        "num_attention_heads": 2,
        "hidden_dim": 8,
        "intermediate_dim": 12,
        "attention_dropout_rate": RATE,
        "feedforward_dropout_rate": RATE,
    },
    "FluxBackbone": {
        "input_channels": 8,
        "hidden_size": 16,
        "mlp_ratio": 2.0,
        "num_heads": 2,
        "depth": 1,
        "depth_single_blocks": 1,
        "axes_dim": [2, 2, 4],
        "theta": 100,
        "use_bias": True,
        "guidance_embed": True,
        "image_shape": (4, 8),
        "text_shape": (4, 8),
        "image_ids_shape": (4, 3),
        "text_ids_shape": (4, 3),
        "y_shape": (8,),
    },
    "GPT2Backbone": WITH_DROPOUT,
    "GPTNeoXBackbone": {**WITH_DROPOUT, "rotary_percentage": 0.5},
    "GemmaBackbone": GEMMA,
    "Gemma3Backbone": {**GEMMA, "image_size": 16},
    "Gemma3nBackbone": {
        "text_vocab_size": 20,
        "text_hidden_size": 8,
        "num_hidden_layers": 1,
        "pad_token_id": 0,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "intermediate_size": [12],
        "hidden_activation": "gelu_approximate",
        "layer_types": ["full_attention"],
        "sliding_window": 4,
        "rope_theta": 100.0,
        "max_position_embeddings": 16,
        "vocab_size_per_layer_input": 20,
        "hidden_size_per_layer_input": 2,
        "altup_num_inputs": 2,
        "laurel_rank": 1,
        "attention_dropout": RATE,
    },
    "Gemma4Backbone": {**GEMMA, "image_size": 16, "num_layers": 2, "sliding_window_size": 4},
    "GptOssBackbone": {**DECODER, **EXPERTS},
    "HGNetV2Backbone": HGNET,
    "LlamaBackbone": DECODER,
    "Llama3Backbone": DECODER,
    "MiTBackbone": {
        "layerwise_depths": [2, 2],
        "num_layers": 2,
        "layerwise_num_heads": [1, 2],
        "layerwise_sr_ratios": [2, 1],
        "max_drop_path_rate": RATE,
        "layerwise_patch_sizes": [7, 3],
        "layerwise_strides": [4, 2],
        "hidden_dims": [4, 8],
        "image_shape": IMAGES,
    },
    "MistralBackbone": DECODER,
    "MixtralBackbone": {**DECODER, **EXPERTS},
    "MobileNetBackbone": {
        "stackwise_expansion": [[8, 12], [12]],
        "stackwise_num_blocks": [2, 1],
        "stackwise_num_filters": [[8, 8], [8]],
        "stackwise_kernel_size": [[3, 3], [3]],
        "stackwise_num_strides": [[2, 1], [1]],
        "stackwise_se_ratio": [[None, 0.25], [0.25]],
        "stackwise_activation": [["relu", "relu"], ["hard_swish"]],
        "stackwise_padding": [[1, 1], [1]],
        "output_num_filters": 16,
        "depthwise_filters": 8,
        "depthwise_stride": 2,
        "depthwise_residual": False,
        "last_layer_filter": 16,
        "input_num_filters": 8,
        "image_shape": IMAGES,
    },
    "MobileNetV5Backbone": {
        "stackwise_block_types": [["er"], ["uir", "uir"]],
        "stackwise_num_blocks": [1, 2],
        "stackwise_num_filters": [[8], [8, 8]],
        "stackwise_strides": [[2], [2, 1]],
        "stackwise_act_layers": [["relu"], ["relu", "relu"]],
        "stackwise_exp_ratios": [[2.0], [2.0, 2.0]],
        "stackwise_se_ratios": [[0.0], [0.0, 0.0]],
        "stackwise_dw_kernel_sizes": [[0], [3, 3]],
        "stackwise_dw_start_kernel_sizes": [[0], [0, 0]],
        "stackwise_dw_end_kernel_sizes": [[0], [0, 0]],
        "stackwise_exp_kernel_sizes": [[3], [0, 0]],
        "stackwise_pw_kernel_sizes": [[1], [0, 0]],
        "stackwise_num_heads": [[0], [0, 0]],
        "stackwise_key_dims": [[0], [0, 0]],
        "stackwise_value_dims": [[0], [0, 0]],
        "stackwise_kv_strides": [[0], [0, 0]],
        "stackwise_use_cpe": [[False], [False, False]],
        "use_msfa": False,
        "drop_path_rate": RATE,
        "image_shape": IMAGES,
    },
    "MoonshineBackbone": {
        "vocabulary_size": 20,
        "filter_dim": 8,
        "encoder_num_layers": 1,
        "decoder_num_layers": 1,
        "hidden_dim": 8,
        "intermediate_dim": 12,
        "encoder_num_heads": 2,
        "decoder_num_heads": 2,
        "dropout": RATE,
        "attention_dropout": RATE,
    },
    "OPTBackbone": WITH_DROPOUT,
    "PaliGemmaBackbone": {
        **GEMMA,
        "image_size": 16,
        "vit_patch_size": 4,
        "vit_num_heads": 2,
        "vit_hidden_dim": 8,
        "vit_num_layers": 1,
        "vit_intermediate_dim": 12,
    },
    "Phi3Backbone": DECODER,
    "QwenBackbone": DECODER,
    "Qwen3Backbone": {**DECODER, "head_dim": 4},
    "Qwen3MoeBackbone": {**DECODER, **EXPERTS, "moe_intermediate_dim": 8},
    "Qwen3_5Backbone": {**DECODER, **MIXED_ATTENTION, "head_dim": 4},
    "Qwen3_5MoeBackbone": {
        **{key: value for key, value in DECODER.items() if key != "intermediate_dim"},
        **MIXED_ATTENTION,
        **EXPERTS,
        "head_dim": 4,
        "moe_intermediate_dim": 8,
        "shared_expert_intermediate_size": 8,
    },
    "QwenMoeBackbone": {**DECODER, **EXPERTS, "moe_intermediate_dim": 8, "shared_expert_intermediate_dim": 8},
    "RWKV7Backbone": {
        "vocabulary_size": 20,
        "hidden_size": 8,
        "head_size": 4,
        "num_layers": 2,
        "intermediate_dim": 12,
        "gate_lora": 4,
        "mv_lora": 4,
        "aaa_lora": 4,
        "decay_lora": 4,
        "dropout_rate": RATE,
    },
    "ResNetBackbone": {
        "input_conv_filters": [64],
        "input_conv_kernel_sizes": [7],
        "stackwise_num_filters": [64, 64],  # it takes no smaller first number
        "stackwise_num_blocks": [1, 1],
        "stackwise_num_strides": [1, 2],
        "block_type": "bottleneck_block",
        "image_shape": IMAGES,
    },
    "RobertaBackbone": WITH_DROPOUT,
    "RoformerV2Backbone": {**WITH_DROPOUT, "head_size": 4},
    "SmolLM3Backbone": {
        "vocabulary_size": 20,
        "hidden_dim": 8,
        "intermediate_dim": 12,
        "num_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "attention_bias": False,
        "attention_dropout": RATE,
        "rope_layer_enabled_list": [True],
        "layer_types": ["attention"],
        "mlp_bias": False,
        "layer_norm_epsilon": 1e-5,
        "max_position_embeddings": 16,
        "rope_theta": 100.0,
        "partial_rotary_factor": 1.0,
    },
    "SwinTransformerBackbone": {
        "image_shape": IMAGES,
        "embed_dim": 8,
        "depths": (2, 2),
        "num_heads": (2, 2),
        "window_size": 4,
        "dropout_rate": RATE,
        "attention_dropout": RATE,
        "drop_path": RATE,
    },
    "T5Backbone": WITH_DROPOUT,
    "T5GemmaBackbone": T5GEMMA,
    "T5Gemma2Backbone": T5GEMMA,
    "VGGBackbone": {"stackwise_num_repeats": [1, 2], "stackwise_num_filters": [4, 8], "image_shape": IMAGES},
    "ViTBackbone": {**PATCHES, "mlp_dim": 12, "dropout_rate": RATE, "attention_dropout": RATE},
    "ViTDetBackbone": {
        "hidden_size": 8,
        "num_layers": 2,
        "intermediate_dim": 12,
        "num_heads": 2,
        "global_attention_layer_indices": [1],
        "image_shape": IMAGES,
        "patch_size": 8,
        "num_output_channels": 4,
        "window_size": 2,
    },
    "VideoPrismBackbone": {
        "num_frames": 2,
        "patch_size": 8,
        "hidden_dim": 8,
        "intermediate_dim": 12,
        "num_heads": 2,
        "num_spatial_layers": 1,
        "num_temporal_layers": 1,
        "num_auxiliary_layers": 1,
        "vocabulary_size": 20,
        "num_text_layers": 1,
        "dropout_rate": RATE,
        "attention_dropout_rate": RATE,
        "attention_logit_soft_cap": 50.0,
        "image_shape": IMAGES,
    },
    "WhisperBackbone": {
        **WITH_DROPOUT,
        "num_mels": 4,
        "max_encoder_sequence_length": 16,
        "max_decoder_sequence_length": 16,
    },
    "XLMRobertaBackbone": WITH_DROPOUT,
    "XLNetBackbone": WITH_DROPOUT,
    "XceptionBackbone": {
        "stackwise_conv_filters": [[4, 8], [8, 8]],
        "stackwise_pooling": [True, False],
        "image_shape": IMAGES,
    },
}


def arguments(name: str) -> dict[str, Any]:
    """The constructor arguments of a small backbone.

    Args:
        name: Name of a class of `keras_hub.models`.

    Raises:
        KeyError: If no configuration is written down for it.
    """
    return _MADE_OF_MODELS[name]() if name in _MADE_OF_MODELS else dict(_PLAIN[name])


# Where a branch ends, for those whose first output is no matrix of features: the logits of CLIP and its like compare
# every image of a batch with every text of it.
FEATURES: dict[str, str | Callable[[keras.Model], Any]] = {
    "CLIPBackbone": lambda model: model.get_layer("clip_head").input[0],
    "DFineBackbone": "last_hidden_state",
    "MetaCLIP2Backbone": lambda model: model.get_layer("metaclip_2_head").input[0],
    # Its masks have other shapes than it says.
    "SAM3PromptableConceptBackbone": "pred_logits",
    "SigLIPBackbone": lambda model: model.get_layer("siglip_head").input[0],
}

# ---------------------------------------------------------------------------------------------------------
# Data
# ---------------------------------------------------------------------------------------------------------

# Sizes of the unknown dimensions of an input, where those that suit most do not.
SIZES: dict[str, dict[str, tuple[int, ...]]] = {
    "MoonshineBackbone": {"encoder_input_values": (3000, 1), "encoder_padding_mask": (3000,)},
    "SAMBackbone": {"points": (1, 2), "labels": (1,), "boxes": (1, 2, 2), "masks": (0, 8, 8, 1)},
    "SAM3PromptableConceptBackbone": {"boxes": (1, 5), "box_labels": (1,)},
    "WhisperBackbone": {"encoder_features": (16, 4)},
}


def data(name: str, inputs: Any, batch: int) -> Any:
    """A batch of random data for symbolic inputs, in their structure."""
    rng = np.random.default_rng(0)

    def values(tensor: Any) -> np.ndarray:
        shape = (batch, *SIZES.get(name, {}).get(tensor.name, _sizes(tensor.shape[1:])))
        if tensor.name.endswith(("mask", "box_labels")):
            return np.ones(shape, tensor.dtype)
        if tensor.name.endswith("position_ids"):
            return np.broadcast_to(np.arange(shape[-1], dtype=tensor.dtype), shape)
        if "int" in tensor.dtype:
            return rng.integers(0, 2 if "segment" in tensor.name else 10, shape).astype(tensor.dtype)
        return rng.random(shape).astype(tensor.dtype)

    return keras.tree.map_structure(values, inputs)


def _sizes(shape: tuple[int | None, ...]) -> tuple[int, ...]:
    unknown = PIXELS if len(shape) > 2 else LENGTH
    return tuple(size or unknown for size in shape)

"""Figures with a slider, for a live notebook; where nothing is live they are a still figure.

A module for each chapter.
"""

from llmkit.widgets.attention import attention_explorer, cache_growth, shared_heads_slider
from llmkit.widgets.decoding import (
    beam_knobs,
    next_token_buttons,
    sampling_knobs,
    speculative_replay,
)
from llmkit.widgets.efficiency import roofline_knobs
from llmkit.widgets.feedforward import gate_knobs
from llmkit.widgets.finetuning import adapter_knobs
from llmkit.widgets.live import follow, live_picture
from llmkit.widgets.losses import loss_knobs
from llmkit.widgets.ngrams import next_character_explorer
from llmkit.widgets.norms import norm_knobs
from llmkit.widgets.positions import turning_dials, turning_pair
from llmkit.widgets.pretraining import schedule_knobs, training_player
from llmkit.widgets.prompting import interval_sliders
from llmkit.widgets.tokenization import merge_slider, tokenizer_playground
from llmkit.widgets.transformer import llama_knobs

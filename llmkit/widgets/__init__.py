"""Figures with a slider, for a live notebook; where nothing is live they are a still figure.

A module for each chapter.
"""

from llmkit.widgets.attention import shared_heads_slider
from llmkit.widgets.decoding import sampling_knobs
from llmkit.widgets.efficiency import roofline_knobs
from llmkit.widgets.feedforward import gate_knobs
from llmkit.widgets.finetuning import adapter_knobs
from llmkit.widgets.live import follow
from llmkit.widgets.losses import loss_knobs
from llmkit.widgets.ngrams import next_character_explorer
from llmkit.widgets.norms import norm_knobs
from llmkit.widgets.positions import turning_dials
from llmkit.widgets.pretraining import live_picture, schedule_knobs
from llmkit.widgets.prompting import interval_sliders
from llmkit.widgets.tokenization import merge_slider
from llmkit.widgets.transformer import llama_knobs

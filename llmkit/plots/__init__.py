"""The figures of the course: one function each, from computed values to a Matplotlib figure.

A module for each chapter, and one look for all of them, in `style`.
"""

from llmkit.plots.attention import (
    attention_maps,
    cache_sizes,
    cut_into_heads,
    masks,
    seconds_per_token,
    share_by_layer,
    shared_heads,
    soft_lookup,
    sorted_weights,
)
from llmkit.plots.decoding import (
    acceptance,
    beam_tree,
    drafted_tokens,
    filtered_bars,
    overlap,
    token_bars,
)
from llmkit.plots.efficiency import (
    divergence_by_bits,
    predicted_and_measured,
    roofline_chart,
    rounding_errors,
    snapped_to_steps,
)
from llmkit.plots.feedforward import (
    arrows_added,
    bends,
    gated_neuron,
    losses_by_seed,
    neuron_maps,
    running_share,
)
from llmkit.plots.finetuning import learned_tokens, low_rank, packed_rows, tuning
from llmkit.plots.losses import (
    coloured_tokens,
    distribution_bars,
    loss_curves,
    loss_parts,
    surprise_curve,
)
from llmkit.plots.ngrams import (
    end_to_end,
    follower_table,
    losses_by_n,
    next_tokens,
    perplexity_by_k,
    ruler,
    smoothing,
    visible,
    word_map,
)
from llmkit.plots.norms import (
    batch_mates,
    normed_groups,
    one_sample,
    sizes_by_depth,
    training_losses,
)
from llmkit.plots.positions import (
    dials,
    llama3_bands,
    position_codes,
    rope_phases,
    score_matrices,
    turned_arrows,
    turned_pair,
)
from llmkit.plots.pretraining import (
    by_length,
    learning_curve,
    learning_rates,
    token_table,
    waiting,
)
from llmkit.plots.prompting import (
    accuracy_curves,
    accuracy_intervals,
    copying_losses,
    head_map,
)
from llmkit.plots.style import (
    BLACK,
    BLUE,
    CYCLIC,
    DIVERGING,
    GREEN,
    ORANGE,
    PURPLE,
    SEQUENTIAL,
    SKY,
    VERMILION,
    YELLOW,
    card,
    image,
    png,
    show,
)
from llmkit.plots.tokenization import (
    compression_curves,
    lookup,
    merges_undone,
    similarity,
    token_rows,
)
from llmkit.plots.transformer import (
    depth_curves,
    influence_maps,
    parameter_shares,
    residual_stream,
    without_each_layer,
)

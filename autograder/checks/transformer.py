"""Chapter 08: a whole Llama, its weights, and the encoder that reads both ways."""

import functools
import re
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from autograder.check import Case, Check, Misconception, Question
from llmkit import bert, checkpoints
from llmkit import transformer as reference
from llmkit.attention import GroupedQueryAttention, KVCache
from llmkit.feedforward import SwiGLU
from llmkit.norms import RMSNorm
from llmkit.positions import rope_frequencies, rope_tables

# What gradients of other styles differ by, in float32.
ROUNDING = (2e-3, 1e-4)


def normal(rng: Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=rng)


def whole(rng: Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high, (), generator=rng))


def llama_config(**sizes) -> dict:
    """A small Llama as a dict. The heads' width is not hidden_size / num_attention_heads."""
    return {
        "vocab_size": 11,
        "hidden_size": 10,
        "intermediate_size": 14,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "max_position_embeddings": 32,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "sliding_window": None,
    } | sizes


@functools.cache
def shapes_of(module_class, sizes: tuple) -> dict[str, torch.Size]:
    """Names and shapes of a module's state; found once, since that takes longer than a check."""
    with torch.device("meta"):
        module = module_class(SimpleNamespace(**dict(sizes)))
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def drawn_weights(rng: Generator, module_class, config: dict) -> dict[str, Tensor]:
    """Random weights for each name of the reference's state dict."""
    weights = {}
    for name, shape in shapes_of(module_class, tuple(config.items())).items():
        drawn = normal(rng, *shape)
        if len(shape) == 1:
            weights[name] = 1 + 0.3 * drawn
        else:
            weights[name] = drawn if "embed" in name else drawn * 0.8 / shape[-1] ** 0.5
    return weights


def filled(module_class, config, weights):
    """A module of these weights; what is not among them holds 0.5."""
    with torch.random.fork_rng(devices=[]):
        module = module_class(SimpleNamespace(**config))
    own = dict(module.state_dict())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(0.5)
        for name, given in weights.items():
            if name not in own:
                raise ValueError(f"there is no parameter {name}: use the names of the exercise")
            if own[name].shape != given.shape:
                found = tuple(own[name].shape)
                raise ValueError(f"{name} should have the shape {tuple(given.shape)}, not {found}")
            own[name].copy_(given)
    return module


def gradients(module):
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


# count_parameters --------------------------------------------------------------------------------


def count_probe(count, config):
    return count(SimpleNamespace(**config))


def count_cases(rng: Generator) -> list[Case]:
    def sizes(**given) -> dict:
        return llama_config(
            vocab_size=whole(rng, 20, 90),
            hidden_size=4 * whole(rng, 3, 9),
            intermediate_size=whole(rng, 40, 70),
            **given,
        )

    def plain(**given) -> dict:
        config = sizes(**given)
        return config | {"head_dim": config["hidden_size"] // config["num_attention_heads"]}

    return [
        Case(plain(num_hidden_layers=1, num_key_value_heads=4)).titled("one layer, MHA"),
        Case(plain(num_hidden_layers=3)).titled("three layers, two key/value heads"),
        Case(plain(num_key_value_heads=1, tie_word_embeddings=True)).titled("tied embeddings"),
        Case(sizes(num_hidden_layers=4, head_dim=10)).titled("wider heads than usual"),
    ]


def parts(c, kv=None, width=None, matrices=3, layer_norms=2, final_norms=1, tables=None):
    """Every count below is this one with one part changed."""
    d, width = c.hidden_size, width or c.head_dim
    kv = kv or c.num_key_value_heads
    tables = tables or (1 if c.tie_word_embeddings else 2)
    attention = 2 * d * c.num_attention_heads * width + 2 * d * kv * width
    layer = attention + matrices * d * c.intermediate_size + layer_norms * d
    return tables * c.vocab_size * d + c.num_hidden_layers * layer + final_norms * d


def count_two_tables(config):
    return parts(config, tables=2)


def count_one_table(config):
    return parts(config, tables=1)


def count_full_kv(config):
    return parts(config, kv=config.num_attention_heads)


def count_square_heads(config):
    return parts(config, width=config.hidden_size // config.num_attention_heads)


def count_two_matrices(config):
    return parts(config, matrices=2)


def count_one_norm(config):
    return parts(config, layer_norms=1)


def count_no_final_norm(config):
    return parts(config, final_norms=0)


def count_norm_bias(config):
    return parts(config, layer_norms=4, final_norms=2)


def count_learned_positions(config):
    return parts(config) + config.max_position_embeddings * config.hidden_size


def count_one_layer(config):
    one = SimpleNamespace(**(vars(config) | {"num_hidden_layers": 1}))
    return parts(one)


def count_by_steps(config):
    d, total = config.hidden_size, 0
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    for _ in range(config.num_hidden_layers):
        total += d * queries + queries * d  # q, o
        total += 2 * d * keys
        total += 3 * d * config.intermediate_size
        total += d + d
    total += d + config.vocab_size * d
    return total if config.tie_word_embeddings else total + config.vocab_size * d


def count_from_shapes(config):
    c = config
    wide, narrow = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    each = [(wide, c.hidden_size), (c.hidden_size, wide), *[(narrow, c.hidden_size)] * 2]
    each += [(c.intermediate_size, c.hidden_size)] * 3 + [(1, c.hidden_size)] * 2
    rest = [(c.vocab_size, c.hidden_size)] * (2 - c.tie_word_embeddings) + [(1, c.hidden_size)]
    shapes = each * c.num_hidden_layers + rest
    return sum(rows * columns for rows, columns in shapes)


def count_on_meta(config):
    c = config
    with torch.device("meta"):
        attention = GroupedQueryAttention(
            c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim
        )
        feedforward = SwiGLU(c.hidden_size, c.intermediate_size)
    layer = sum(p.numel() for m in (attention, feedforward) for p in m.parameters())
    table = c.vocab_size * c.hidden_size
    norms = (2 * c.num_hidden_layers + 1) * c.hidden_size
    return c.num_hidden_layers * layer + norms + table + (0 if c.tie_word_embeddings else table)


COUNT_PARAMETERS = Check(
    reference=reference.count_parameters,
    points=4,
    cases=count_cases,
    probe=count_probe,
    misconceptions=[
        Misconception(
            "a tied table is counted twice",
            count_two_tables,
            "With tie_word_embeddings, how many different matrices are embedding and head?",
        ),
        Misconception(
            "the head is never counted",
            count_one_table,
            "Without tie_word_embeddings, which matrix makes the logits? Is it the embedding?",
        ),
        Misconception(
            "keys and values are counted with as many heads as the queries",
            count_full_kv,
            "How many rows does k_proj have if 4 query heads share 2 key/value heads?",
        ),
        Misconception(
            "the width of a head is taken for hidden_size / num_attention_heads",
            count_square_heads,
            "The config has a head_dim of its own. Must 4 heads of 6 make up a width of 10?",
        ),
        Misconception(
            "the feed-forward layer is counted with two matrices",
            count_two_matrices,
            "Which three projections does SwiGLU have?",
        ),
        Misconception(
            "one norm a layer is counted",
            count_one_norm,
            "What does the feed-forward sublayer read, and what made that?",
        ),
        Misconception(
            "the norm after the last layer is forgotten",
            count_no_final_norm,
            "What stands between the last layer and the head?",
        ),
        Misconception(
            "the norms are counted with a bias",
            count_norm_bias,
            "Which of LayerNorm's two vectors does RMSNorm have?",
        ),
        Misconception(
            "positions are counted as a table",
            count_learned_positions,
            "Which parameters does RoPE have?",
        ),
        Misconception(
            "only one layer is counted",
            count_one_layer,
            "How often does a layer stand in the model? Does each have weights of its own?",
        ),
    ],
    variants=[count_by_steps, count_from_shapes, count_on_meta],
)


# TransformerBlock --------------------------------------------------------------------------------


def block_probe(block_class, config, weights, x, rope=None, mask=None, chunks=None):
    """What a block of these weights makes of x, and the gradients of the mean of its squares.

    With chunks, so many tokens at a time are fed through a cache.
    """
    block = filled(block_class, config, weights)
    names = sorted(name for name, _ in block.named_parameters())
    if chunks is None:
        leaf = x.clone().requires_grad_()
        y = block(leaf, rope, None, mask)
        y.square().mean().backward()
        return y, leaf.grad, gradients(block), names
    cache = KVCache(len(x), config["num_key_value_heads"], x.shape[1], config["head_dim"])
    pieces, start = [], 0
    with torch.no_grad():
        for size in chunks:
            end = start + size
            here = None if rope is None else tuple(table[start:end] for table in rope)
            pieces.append(block(x[:, start:end].clone(), here, cache, None))
            start = end
    return torch.cat(pieces, 1), cache.offset, names


def block_cases(rng: Generator) -> list[Case]:
    def case(x: Tensor, *rest, title: str, chunks=None, **sizes) -> Case:
        config = llama_config(**sizes)
        weights = drawn_weights(rng, reference.TransformerBlock, config)
        return Case(config, weights, x, *rest, chunks=chunks).titled(title)

    def rope(length: int) -> tuple[Tensor, Tensor]:
        angles = 6 * torch.rand((length, 3), generator=rng)
        return angles.cos(), angles.sin()

    backward = torch.ones(5, 5, dtype=torch.bool).triu()[None, None]
    return [
        case(2 * normal(rng, 2, 5, 10), title="values and gradients"),
        case(2 * normal(rng, 3, 5, 10), rope(5), title="with RoPE"),
        case(2 * normal(rng, 2, 5, 10), None, backward, title="with a mask that looks ahead"),
        case(0.2 * normal(rng, 2, 4, 10), title="a large eps", rms_norm_eps=0.1),
        case(2 * normal(rng, 2, 6, 10), rope(6), title="through a cache", chunks=[3, 1, 2]),
    ]


class Block(nn.Module):
    """A right one, so that each wrong one below changes a single step."""

    def __init__(self, config):
        super().__init__()
        c = config
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = GroupedQueryAttention(
            c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim
        )
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.mlp = SwiGLU(c.hidden_size, c.intermediate_size)

    def forward(self, x, rope=None, cache=None, mask=None):
        x = x + self.self_attn(self.input_layernorm(x), rope, cache, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class BlockPostNorm(Block):
    def forward(self, x, rope=None, cache=None, mask=None):
        x = self.input_layernorm(x + self.self_attn(x, rope, cache, mask))
        return self.post_attention_layernorm(x + self.mlp(x))


class BlockNormedOutputs(Block):
    def forward(self, x, rope=None, cache=None, mask=None):
        x = x + self.input_layernorm(self.self_attn(x, rope, cache, mask))
        return x + self.post_attention_layernorm(self.mlp(x))


class BlockAttentionReplaces(Block):
    def forward(self, x, rope=None, cache=None, mask=None):
        x = self.self_attn(self.input_layernorm(x), rope, cache, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class BlockFeedForwardReplaces(Block):
    def forward(self, x, rope=None, cache=None, mask=None):
        x = x + self.self_attn(self.input_layernorm(x), rope, cache, mask)
        return self.mlp(self.post_attention_layernorm(x))


class BlockAddsNormed(Block):
    def forward(self, x, rope=None, cache=None, mask=None):
        x = self.input_layernorm(x)
        x = x + self.self_attn(x, rope, cache, mask)
        x = self.post_attention_layernorm(x)
        return x + self.mlp(x)


class BlockParallel(Block):
    def forward(self, x, rope=None, cache=None, mask=None):
        attended = self.self_attn(self.input_layernorm(x), rope, cache, mask)
        return x + attended + self.mlp(self.post_attention_layernorm(x))


class BlockNormsSwapped(Block):
    def forward(self, x, rope=None, cache=None, mask=None):
        x = x + self.self_attn(self.post_attention_layernorm(x), rope, cache, mask)
        return x + self.mlp(self.input_layernorm(x))


class BlockOneNorm(Block):
    def forward(self, x, rope=None, cache=None, mask=None):
        x = x + self.self_attn(self.input_layernorm(x), rope, cache, mask)
        return x + self.mlp(self.input_layernorm(x))


class BlockWithoutRope(Block):
    def forward(self, x, rope=None, cache=None, mask=None):
        return super().forward(x, None, cache, mask)


class BlockWithoutMask(Block):
    def forward(self, x, rope=None, cache=None, mask=None):
        return super().forward(x, rope, cache, None)


class BlockWithoutCache(Block):
    def forward(self, x, rope=None, cache=None, mask=None):
        return super().forward(x, rope, None, mask)


class BlockOwnEps(Block):
    def __init__(self, config):
        super().__init__(config)
        self.input_layernorm = RMSNorm(config.hidden_size)
        self.post_attention_layernorm = RMSNorm(config.hidden_size)


class BlockOfTorch(Block):
    def __init__(self, config):
        super().__init__(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x, rope=None, cache=None, mask=None):
        read = self.input_layernorm(x)
        middle = torch.add(x, self.self_attn(read, rope=rope, cache=cache, mask=mask))
        return torch.add(middle, self.mlp(self.post_attention_layernorm(middle)))


class BlockInALoop(Block):
    def forward(self, x, rope=None, cache=None, mask=None):
        steps = [
            (self.input_layernorm, lambda read: self.self_attn(read, rope, cache, mask)),
            (self.post_attention_layernorm, self.mlp),
        ]
        for norm, sublayer in steps:
            x = sublayer(norm(x)) + x
        return x


class BlockWithOwnParts(nn.Module):
    def __init__(self, config):
        super().__init__()
        c = config
        self.eps = c.rms_norm_eps
        self.mlp = nn.ModuleDict(
            {
                "up_proj": nn.Linear(c.hidden_size, c.intermediate_size, bias=False),
                "gate_proj": nn.Linear(c.hidden_size, c.intermediate_size, bias=False),
                "down_proj": nn.Linear(c.intermediate_size, c.hidden_size, bias=False),
            }
        )
        self.post_attention_layernorm = nn.RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.input_layernorm = nn.RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = GroupedQueryAttention(
            c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim
        )

    def normed(self, x, norm):
        return norm.weight * x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.eps)

    def forward(self, x, rope=None, cache=None, mask=None):
        h = x + self.self_attn(self.normed(x, self.input_layernorm), rope, cache, mask)
        read = self.normed(h, self.post_attention_layernorm)
        gate, up = read @ self.mlp.gate_proj.weight.T, read @ self.mlp.up_proj.weight.T
        return h + (F.silu(gate) * up) @ self.mlp.down_proj.weight.T


TRANSFORMER_BLOCK = Check(
    reference=reference.TransformerBlock,
    points=5,
    cases=block_cases,
    probe=block_probe,
    tolerance=ROUNDING,
    misconceptions=[
        Misconception(
            "post-norm: the sum is normalized",
            BlockPostNorm,
            "Llama is pre-norm. Is the residual stream itself ever normalized inside a block?",
        ),
        Misconception(
            "what a sublayer gives is normalized, not what it reads",
            BlockNormedOutputs,
            "In x + f(norm(x)), which stands inside the other: the norm or the sublayer f?",
        ),
        Misconception(
            "what attention gives replaces x instead of being added",
            BlockAttentionReplaces,
            "How many additions does the formula of a block have?",
        ),
        Misconception(
            "what the feed-forward layer gives replaces x instead of being added",
            BlockFeedForwardReplaces,
            "How many additions does the formula of a block have? Where is the second one?",
        ),
        Misconception(
            "the sublayers' outputs are added to the normalized copy",
            BlockAddsNormed,
            "After x = norm(x), where is the x that the sum should start from?",
        ),
        Misconception(
            "the feed-forward layer reads the block's input, not the stream after attention",
            BlockParallel,
            "Can the feed-forward layer work on what attention has just gathered?",
        ),
        Misconception(
            "the two norms are swapped",
            BlockNormsSwapped,
            "Which of the two norms is named after its place: the one before attention or after?",
        ),
        Misconception(
            "one norm serves both sublayers",
            BlockOneNorm,
            "A real checkpoint has two norm weights for each layer. Which one do you never use?",
        ),
        Misconception(
            "RoPE's tables are not handed to attention",
            BlockWithoutRope,
            "Who turns the queries and keys, and where does it get the cosines and sines?",
        ),
        Misconception(
            "the mask is not handed to attention",
            BlockWithoutMask,
            "What happens to the argument mask in your block?",
        ),
        Misconception(
            "the cache is not handed to attention",
            BlockWithoutCache,
            "Three tokens were fed before. Where would this call find their keys?",
        ),
        Misconception(
            "the norms take their own eps, not the config's",
            BlockOwnEps,
            "Llama 1 was trained with eps = 1e-6, Llama 2 with 1e-5. Where does yours come from?",
        ),
    ],
    variants=[BlockOfTorch, BlockInALoop, BlockWithOwnParts],
)


# LlamaModel --------------------------------------------------------------------------------------


def caches_for(config, rows, capacity):
    sizes = rows, config["num_key_value_heads"], capacity, config["head_dim"]
    return [KVCache(*sizes) for _ in range(config["num_hidden_layers"])]


def model_probe(model_class, config, weights, ids, chunks=None):
    """What a model of these weights makes of the ids, and its gradients; in chunks, with caches."""
    model = filled(model_class, config, weights)
    names = sorted(name for name, _ in model.named_parameters())
    if chunks is None:
        y = model(ids)
        y.square().mean().backward()
        return y, gradients(model), names, sorted(model.state_dict())
    caches = caches_for(config, len(ids), ids.shape[1])
    with torch.no_grad():
        pieces = [model(piece.clone(), caches) for piece in ids.split(chunks, dim=1)]
    return torch.cat(pieces, 1), [cache.offset for cache in caches], names


def ids_of(rng: Generator, rows: int, length: int) -> Tensor:
    return torch.randint(0, 11, (rows, length), generator=rng)


def model_cases(rng: Generator) -> list[Case]:
    def case(rows: int, length: int, title: str, chunks=None, **sizes) -> Case:
        config = llama_config(**sizes)
        weights = drawn_weights(rng, reference.LlamaModel, config)
        return Case(config, weights, ids_of(rng, rows, length), chunks=chunks).titled(title)

    return [
        case(1, 4, "one layer", num_hidden_layers=1),
        case(2, 5, "heads of hidden_size / num_attention_heads", hidden_size=16, head_dim=4),
        case(2, 6, "three layers, base 100", num_hidden_layers=3, rope_theta=100.0),
        case(1, 3, "a large eps", rms_norm_eps=0.5),
        case(2, 7, "through a cache, in pieces of 4, 1 and 2 tokens", [4, 1, 2]),
    ]


class Stack(nn.Module):
    """A right one, so that each wrong one below changes a single step."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def rope(self, length, cache):
        offset = cache[0].offset if cache else 0
        device = self.embed_tokens.weight.device
        positions = torch.arange(offset, offset + length, device=device)
        frequencies = rope_frequencies(self.config.head_dim, self.config.rope_theta)
        return rope_tables(positions, frequencies.to(device))

    def forward(self, input_ids, cache=None):
        rope = self.rope(input_ids.shape[1], cache)
        x = self.embed_tokens(input_ids)
        for i, layer in enumerate(self.layers):
            x = layer(x, rope, cache[i] if cache else None)
        return self.norm(x)


class StackWithoutNorm(Stack):
    def forward(self, input_ids, cache=None):
        rope = self.rope(input_ids.shape[1], cache)
        x = self.embed_tokens(input_ids)
        for i, layer in enumerate(self.layers):
            x = layer(x, rope, cache[i] if cache else None)
        return x


class StackNormsEachLayer(Stack):
    def forward(self, input_ids, cache=None):
        rope = self.rope(input_ids.shape[1], cache)
        x = self.embed_tokens(input_ids)
        for i, layer in enumerate(self.layers):
            x = self.norm(layer(x, rope, cache[i] if cache else None))
        return x


class StackRestartsPositions(Stack):
    def rope(self, length, cache):
        return super().rope(length, None)


class StackOfOneBlock(Stack):
    def __init__(self, config):
        super().__init__(config)
        self.layers = nn.ModuleList([Block(config)] * config.num_hidden_layers)


class StackInAList(Stack):
    def __init__(self, config):
        super().__init__(config)
        del self.layers
        self.layers = [Block(config) for _ in range(config.num_hidden_layers)]


class StackScaledEmbedding(Stack):
    def forward(self, input_ids, cache=None):
        rope = self.rope(input_ids.shape[1], cache)
        x = self.embed_tokens(input_ids) * self.config.hidden_size**0.5
        for i, layer in enumerate(self.layers):
            x = layer(x, rope, cache[i] if cache else None)
        return self.norm(x)


class StackReadsEmbeddings(Stack):
    def forward(self, input_ids, cache=None):
        rope = self.rope(input_ids.shape[1], cache)
        embedded = self.embed_tokens(input_ids)
        for i, layer in enumerate(self.layers):
            x = layer(embedded, rope, cache[i] if cache else None)
        return self.norm(x)


class StackUsualBase(Stack):
    def rope(self, length, cache):
        offset = cache[0].offset if cache else 0
        device = self.embed_tokens.weight.device
        positions = torch.arange(offset, offset + length, device=device)
        return rope_tables(positions, rope_frequencies(self.config.head_dim).to(device))


class StackWithABuffer(Stack):
    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("frequencies", rope_frequencies(config.head_dim, config.rope_theta))


class StackOwnEps(Stack):
    def __init__(self, config):
        super().__init__(config)
        self.norm = RMSNorm(config.hidden_size)


class StackUsualWidth(Stack):
    def rope(self, length, cache):
        offset = cache[0].offset if cache else 0
        device = self.embed_tokens.weight.device
        positions = torch.arange(offset, offset + length, device=device)
        width = self.config.hidden_size // self.config.num_attention_heads
        return rope_tables(positions, rope_frequencies(width, self.config.rope_theta).to(device))


class StackWithoutRope(Stack):
    def rope(self, length, cache):
        return None


class StackSharedCache(Stack):
    def forward(self, input_ids, cache=None):
        return super().forward(input_ids, cache and [cache[0]] * len(self.layers))


class StackOffsetLate(Stack):
    def forward(self, input_ids, cache=None):
        x = self.embed_tokens(input_ids)
        for i, layer in enumerate(self.layers):
            rope = self.rope(input_ids.shape[1], cache)
            x = layer(x, rope, cache[i] if cache else None)
        return self.norm(x)


class StackWithoutCache(Stack):
    def forward(self, input_ids, cache=None):
        return super().forward(input_ids)


class StackByPairs(Stack):
    def forward(self, input_ids, cache=None):
        caches = cache or [None] * len(self.layers)
        start = 0 if cache is None else cache[-1].offset
        positions = start + torch.arange(input_ids.shape[-1]).to(input_ids)
        c = self.config
        x = F.embedding(input_ids, self.embed_tokens.weight)
        tables = rope_tables(positions, rope_frequencies(c.head_dim, c.rope_theta).to(x))
        for layer, own in zip(self.layers, caches, strict=True):
            x = layer(x, rope=tables, cache=own)
        return self.norm(x)


class StackPositionForEachRow(Stack):
    def rope(self, length, cache):
        cos, sin = super().rope(length, cache)
        return cos[None], sin[None]


class StackRecursive(Stack):
    def climb(self, x, rope, cache, height):
        if height == 0:
            return x
        x = self.climb(x, rope, cache, height - 1)
        return self.layers[height - 1](x, rope, cache and cache[height - 1])

    def forward(self, input_ids, cache=None):
        rope = self.rope(input_ids.shape[1], cache)
        x = self.embed_tokens.weight[input_ids]
        return self.norm(self.climb(x, rope, cache, len(self.layers)))


LLAMA_MODEL = Check(
    reference=reference.LlamaModel,
    points=6,
    cases=model_cases,
    probe=model_probe,
    tolerance=ROUNDING,
    misconceptions=[
        Misconception(
            "the norm after the last layer is missing",
            StackWithoutNorm,
            "Each sublayer reads a normalized copy. Who normalizes what the head reads?",
        ),
        Misconception(
            "the last norm is applied after every layer",
            StackNormsEachLayer,
            "How often does a Llama normalize the residual stream itself?",
        ),
        Misconception(
            "positions start at 0 again in every call",
            StackRestartsPositions,
            "Four tokens are in the cache and one comes. What is its position?",
        ),
        Misconception(
            "all layers are one and the same block",
            StackOfOneBlock,
            "How many blocks does [Block(config)] * 3 make?",
        ),
        Misconception(
            "the blocks stand in a Python list, where PyTorch does not find their weights",
            StackInAList,
            "What does PyTorch look for in self? Is a list a module?",
        ),
        Misconception(
            "the embeddings are multiplied by the root of the width",
            StackScaledEmbedding,
            "The first Transformer did so, and Gemma does. Does Llama?",
        ),
        Misconception(
            "every layer reads the embeddings",
            StackReadsEmbeddings,
            "Should the second layer read the embeddings, or what the first one made of them?",
        ),
        Misconception(
            "RoPE's base is always 10000",
            StackUsualBase,
            "SmolLM2's base is 100,000. Where does yours come from?",
        ),
        Misconception(
            "the width of a head is taken for hidden_size / num_attention_heads",
            StackUsualWidth,
            "The config has a head_dim of its own. What does RoPE turn: x, or the heads?",
        ),
        Misconception(
            "no RoPE: the layers get no tables",
            StackWithoutRope,
            "Without the tables, how does the model tell 'dog chased cat' from 'cat chased dog'?",
        ),
        Misconception(
            "all layers share the first layer's cache",
            StackSharedCache,
            "Are the keys of layer 1 those of layer 0? How many caches does the list hold?",
        ),
        Misconception(
            "the offset is read again in each layer, after the first cache has grown",
            StackOffsetLate,
            "What is cache[0].offset before the first layer ran, and what is it after?",
        ),
        Misconception(
            "the cache is not handed to the layers",
            StackWithoutCache,
            "Which argument of your forward is never used?",
        ),
        Misconception(
            "RoPE's frequencies are a buffer, and so stand in the state dict",
            StackWithABuffer,
            "Which names does a checkpoint's file hold? Is there one for RoPE?",
        ),
        Misconception(
            "the last norm has an eps of its own",
            StackOwnEps,
            "Which of RMSNorm's two arguments comes from rms_norm_eps?",
        ),
    ],
    variants=[StackByPairs, StackPositionForEachRow, StackRecursive],
)


# tie_embeddings ----------------------------------------------------------------------------------


def tie_probe(tie, tied, embedding, head, ids):
    """What a model with an embedding and a head is after `tie`: its parameters and gradients."""
    model = nn.Module()
    model.config = SimpleNamespace(tie_word_embeddings=tied)
    model.model = nn.Module()
    model.model.embed_tokens = nn.Embedding.from_pretrained(embedding.clone(), freeze=False)
    model.lm_head = nn.Linear(head.shape[1], head.shape[0], bias=False)
    model.lm_head.weight = nn.Parameter(head.clone())
    tie(model)
    if not isinstance(model.lm_head, nn.Linear):
        return f"the head is an nn.{type(model.lm_head).__name__}"
    logits = model.lm_head(model.model.embed_tokens(ids))
    logits.square().mean().backward()
    found = gradients(model), sum(p.numel() for p in model.parameters())
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    return logits, *found, model.model.embed_tokens.weight.detach(), model.lm_head.weight.detach()


def tie_cases(rng: Generator) -> list[Case]:
    def case(tied: bool, rows: int, width: int) -> Case:
        tables = normal(rng, rows, width), normal(rng, rows, width)
        ids = torch.randint(0, rows, (2, 5), generator=rng)
        return Case(tied, *tables, ids).titled("tied" if tied else "not tied")

    return [case(True, 7, 4), case(False, 6, 5), case(True, 3, 8)]


def tie_copy(model):
    if model.config.tie_word_embeddings:
        model.lm_head.weight = nn.Parameter(model.model.embed_tokens.weight.detach().clone())


def tie_memory_only(model):
    if model.config.tie_word_embeddings:
        model.lm_head.weight.data = model.model.embed_tokens.weight.data


def tie_other_way(model):
    if model.config.tie_word_embeddings:
        model.model.embed_tokens.weight = model.lm_head.weight


def tie_always(model):
    model.lm_head.weight = model.model.embed_tokens.weight


def tie_never(model):
    pass


def tie_if_not(model):
    if not model.config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight


def tie_module(model):
    if model.config.tie_word_embeddings:
        model.lm_head = model.model.embed_tokens


def tie_transposed(model):
    if model.config.tie_word_embeddings:
        model.lm_head.weight = nn.Parameter(model.model.embed_tokens.weight.detach().T)


def tie_other_way_always(model):
    model.model.embed_tokens.weight = model.lm_head.weight


def tie_by_setattr(model):
    embedding = model.get_parameter("model.embed_tokens.weight")
    if model.config.tie_word_embeddings:
        setattr(model.lm_head, "weight", embedding)  # noqa: B010


def tie_by_register(model):
    if model.config.tie_word_embeddings:
        model.lm_head.register_parameter("weight", model.model.embed_tokens.weight)


def tie_with_early_return(model):
    if not model.config.tie_word_embeddings:
        return
    table = model.model.embed_tokens
    del model.lm_head.weight
    model.lm_head.weight = table.weight


TIE_EMBEDDINGS = Check(
    reference=reference.Llama.tie_embeddings,
    name="tie_embeddings",
    points=2,
    cases=tie_cases,
    probe=tie_probe,
    misconceptions=[
        Misconception(
            "the values are copied: two matrices that are equal at first",
            tie_copy,
            "After one training step, are the two still equal? How many are there?",
        ),
        Misconception(
            "the memory is shared, but there are still two parameters",
            tie_memory_only,
            "An optimizer goes through the parameters. How many does it see, with which gradients?",
        ),
        Misconception(
            "the embedding is replaced by the head",
            tie_other_way,
            "A tied checkpoint holds one of the two. Which one must stay?",
        ),
        Misconception(
            "tied whatever the config says",
            tie_always,
            "Llama 3 8B has a head of its own. What does your function do to it?",
        ),
        Misconception(
            "nothing is tied",
            tie_never,
            "After your function, is model.lm_head.weight the embedding's weight?",
        ),
        Misconception(
            "the condition is the wrong way round",
            tie_if_not,
            "For which of the two values of tie_word_embeddings does your function act?",
        ),
        Misconception(
            "the head is replaced by the embedding's module",
            tie_module,
            "A lookup takes ids, and gives rows. What does a head take, and what does it give?",
        ),
        Misconception(
            "the head gets the transpose",
            tie_transposed,
            "What are the shapes of nn.Embedding(V, D).weight and nn.Linear(D, V).weight?",
        ),
        Misconception(
            "the embedding is replaced by the head, whatever the config says",
            tie_other_way_always,
            "A tied checkpoint holds one of the two. Which one? And what if none is to be tied?",
        ),
    ],
    variants=[tie_by_setattr, tie_by_register, tie_with_early_return],
)


# Llama -------------------------------------------------------------------------------------------


def llama_probe(llama_class, config, weights, ids, logits_to_keep=None, chunks=None):
    """A Llama's logits, gradients and names; in chunks, with caches."""
    model = filled(llama_class, config, weights)
    names = sorted(name for name, _ in model.named_parameters())
    if chunks is None:
        logits = model(ids, None, logits_to_keep=logits_to_keep)
        logits.square().mean().backward()
        return logits, gradients(model), names
    caches = caches_for(config, len(ids), ids.shape[1])
    with torch.no_grad():
        pieces = [
            model(piece.clone(), caches, logits_to_keep=logits_to_keep)
            for piece in ids.split(chunks, dim=1)
        ]
    return torch.cat(pieces, 1), [cache.offset for cache in caches], names


def llama_cases(rng: Generator) -> list[Case]:
    def case(rows: int, length: int, title: str, keep=None, chunks=None, **sizes) -> Case:
        config = llama_config(**sizes)
        weights = drawn_weights(rng, reference.Llama, config)
        if config["tie_word_embeddings"]:
            del weights["lm_head.weight"]
        return Case(config, weights, ids_of(rng, rows, length), keep, chunks).titled(title)

    return [
        case(2, 5, "a head of its own"),
        case(2, 4, "a tied head", tie_word_embeddings=True),
        case(3, 6, "the last two positions only", 2, num_hidden_layers=1),
        case(2, 6, "through a cache", 1, [3, 1, 2], tie_word_embeddings=True),
    ]


class Whole(nn.Module):
    """A right one, so that each wrong one below changes a single step."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.model = Stack(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tie()

    def tie(self):
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def kept(self, hidden, logits_to_keep):
        return hidden if logits_to_keep is None else hidden[:, -logits_to_keep:]

    def forward(self, input_ids, cache=None, logits_to_keep=None):
        return self.lm_head(self.kept(self.model(input_ids, cache), logits_to_keep))


class WholeUntied(Whole):
    def tie(self):
        pass


class WholeAlwaysTied(Whole):
    def tie(self):
        self.lm_head.weight = self.model.embed_tokens.weight


class WholeProbabilities(Whole):
    def forward(self, input_ids, cache=None, logits_to_keep=None):
        return super().forward(input_ids, cache, logits_to_keep).softmax(-1)


class WholeLogProbabilities(Whole):
    def forward(self, input_ids, cache=None, logits_to_keep=None):
        return super().forward(input_ids, cache, logits_to_keep).log_softmax(-1)


class WholeKeepsFirst(Whole):
    def kept(self, hidden, logits_to_keep):
        return hidden if logits_to_keep is None else hidden[:, :logits_to_keep]


class WholeKeepsAll(Whole):
    def kept(self, hidden, logits_to_keep):
        return hidden


class WholeKeepsOne(Whole):
    def kept(self, hidden, logits_to_keep):
        return hidden if logits_to_keep is None else hidden[:, -1:]


class WholeKeepsOnePlace(Whole):
    def kept(self, hidden, logits_to_keep):
        return hidden if logits_to_keep is None else hidden[:, -logits_to_keep]


class WholeWithoutCache(Whole):
    def forward(self, input_ids, cache=None, logits_to_keep=None):
        return super().forward(input_ids, None, logits_to_keep)


class WholeWithBias(Whole):
    def __init__(self, config):
        super().__init__(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.tie()


class WholeHeadOfEmbeddings(Whole):
    def forward(self, input_ids, cache=None, logits_to_keep=None):
        self.model(input_ids, cache)
        return self.lm_head(self.kept(self.model.embed_tokens(input_ids), logits_to_keep))


class WholeCutsLogits(Whole):
    def forward(self, input_ids, cache=None, logits_to_keep=None):
        logits = self.lm_head(self.model(input_ids, cache))
        return logits if logits_to_keep is None else logits[:, logits.shape[1] - logits_to_keep :]


class WholeByFunctions(Whole):
    def forward(self, input_ids, cache=None, logits_to_keep=None):
        hidden = self.model(input_ids, cache)
        if logits_to_keep:
            hidden = hidden.narrow(1, hidden.shape[1] - logits_to_keep, logits_to_keep)
        return F.linear(hidden, self.lm_head.weight)


class WholeByEinsum(Whole):
    def forward(self, input_ids, cache=None, logits_to_keep=None):
        start = 0 if logits_to_keep is None else -logits_to_keep
        hidden = self.model(input_ids, cache=cache)[:, start:]
        return torch.einsum("btd,vd->btv", hidden, self.lm_head.weight)


LLAMA = Check(
    reference=reference.Llama,
    points=4,
    cases=llama_cases,
    probe=llama_probe,
    tolerance=ROUNDING,
    misconceptions=[
        Misconception(
            "the head is never tied to the embedding",
            WholeUntied,
            "SmolLM2's file holds no lm_head.weight. Where would your head get its numbers from?",
        ),
        Misconception(
            "the head is always tied to the embedding",
            WholeAlwaysTied,
            "Llama 3 8B has a head of its own. Does your model ask the config?",
        ),
        Misconception(
            "probabilities are returned instead of logits",
            WholeProbabilities,
            "What does the loss of chapter 02 want to be given?",
        ),
        Misconception(
            "log-probabilities are returned instead of logits",
            WholeLogProbabilities,
            "Does the docstring ask for the head's scores, or for something made of them?",
        ),
        Misconception(
            "the first positions are kept, not the last",
            WholeKeepsFirst,
            "To continue a text, whose logits do you need: its first token's or its last one's?",
        ),
        Misconception(
            "all positions are kept",
            WholeKeepsAll,
            "What does logits_to_keep = 2 ask for? What is the shape of your result?",
        ),
        Misconception(
            "one position is kept, however many are asked for",
            WholeKeepsOne,
            "What does logits_to_keep = 2 ask for? What is the shape of your result?",
        ),
        Misconception(
            "a single position is picked, and the axis of positions is lost",
            WholeKeepsOnePlace,
            "What does x[:, -2] have that x[:, -2:] does not, and the other way round?",
        ),
        Misconception(
            "the cache is not handed on",
            WholeWithoutCache,
            "Three tokens were fed before. Where would this call find their keys?",
        ),
        Misconception(
            "the head has a bias",
            WholeWithBias,
            "Which names stand in the list of SmolLM2's weights? Is there an lm_head.bias?",
        ),
        Misconception(
            "the head reads the embeddings, not the final hidden states",
            WholeHeadOfEmbeddings,
            "What comes out of self.model, and who reads it in your forward?",
        ),
    ],
    variants=[WholeCutsLogits, WholeByFunctions, WholeByEinsum],
)


# hf_name -----------------------------------------------------------------------------------------

PARTS = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output")
PARTS += ("ffn_norm", "ffn_gate", "ffn_up", "ffn_down")


def name_cases(rng: Generator) -> list[Case]:
    layers = torch.randperm(90, generator=rng).tolist()
    named = [f"blk.{layer + 1}.{part}.weight" for layer, part in zip(layers, PARTS, strict=False)]
    long = f"blk.{whole(rng, 100, 126)}.attn_output.weight"
    rest = ["token_embd.weight", "output_norm.weight", "output.weight", "rope_freqs.weight"]
    rest += [f"blk.{layers[0]}.attn_q.bias", "output_norm.bias", f"blk.{layers[1]}.output.weight"]
    return [Case(name).titled(name) for name in ("blk.0.attn_q.weight", *named, long, *rest)]


TABLE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


OUTSIDE = ("token_embd", "output_norm", "output")  # of the layers


def renamed(name, table, inside="model.layers.{}.", end=".weight", known_only=False):
    words = name.split(".")
    known = words[-2] in table and (words[-2] in OUTSIDE) == (words[0] != "blk")
    if not known or words[-1] != "weight":
        return None if known_only else name
    prefix = inside.format(words[1]) if words[0] == "blk" else ""
    return prefix + table[words[-2]] + end


def name_one_digit(name):
    found = re.match(r"blk\.(\d)\.?(\d*)\.?(\w+)\.weight", name)
    return renamed(f"blk.{found[1]}.{found[3]}.weight" if found else name, TABLE)


def name_without_model(name):
    return renamed(name, TABLE, inside="layers.{}.")


def name_without_weight(name):
    return renamed(name, TABLE, end="")


def name_head_in_model(name):
    return renamed(name, TABLE | {"output": "model.lm_head"})


def name_gate_is_up(name):
    return renamed(name, TABLE | {"ffn_gate": "mlp.up_proj", "ffn_up": "mlp.gate_proj"})


def name_norms_swapped(name):
    swapped = {"attn_norm": "post_attention_layernorm", "ffn_norm": "input_layernorm"}
    return renamed(name, TABLE | swapped)


def name_by_replacing(name):
    name = name.replace("blk.", "model.layers.")
    for old, new in TABLE.items():
        name = name.replace(old, new)
    return name


def name_any_ending(name):
    words = name.split(".")
    if words[-1] == "bias":
        return name_any_ending(".".join([*words[:-1], "weight"]))
    return renamed(name, TABLE)


def name_anywhere(name):
    words = name.split(".")
    if words[-1] != "weight" or words[-2] not in TABLE:
        return name
    start = f"model.layers.{words[1]}." if words[0] == "blk" else ""
    return f"{start}{TABLE[words[-2]]}.weight"


def name_counted_from_one(name):
    words = name.split(".")
    if words[0] == "blk":
        words[1] = str(int(words[1]) + 1)
    return renamed(".".join(words), TABLE)


def name_unknown_is_none(name):
    return renamed(name, TABLE, known_only=True)


def name_final_norm_in_front(name):
    return renamed(name, TABLE | {"output_norm": "norm"})


def name_by_split(name):
    words = name.split(".")
    part = words[-2]
    if part not in TABLE or words[-1] != "weight" or (part in OUTSIDE) == (len(words) == 4):
        return name
    start = ["model", "layers", words[1]] if len(words) == 4 else []
    return ".".join([*start, TABLE[part], "weight"])


def name_by_pattern(name):
    found = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if found and found[2] in list(TABLE)[3:]:
        return f"model.layers.{found[1]}.{TABLE[found[2]]}.weight"
    return {f"{old}.weight": f"{TABLE[old]}.weight" for old in list(TABLE)[:3]}.get(name, name)


def name_by_listing(name):
    names = {}
    for old, new in TABLE.items():
        if old in ("token_embd", "output_norm", "output"):
            names[f"{old}.weight"] = f"{new}.weight"
        else:
            for layer in range(200):
                names[f"blk.{layer}.{old}.weight"] = f"model.layers.{layer}.{new}.weight"
    return names.get(name, name)


HF_NAME = Check(
    reference=checkpoints._hf_name,
    name="hf_name",
    points=3,
    cases=name_cases,
    misconceptions=[
        Misconception(
            "a bias is renamed to a weight",
            name_any_ending,
            "A file holds blk.0.attn_q.bias. Which tensor would take its place?",
        ),
        Misconception(
            "a word of the table is replaced wherever it stands",
            name_anywhere,
            "blk.3.output.weight is not in the table. What does your function make of it?",
        ),
        Misconception(
            "the number of a layer is taken for one digit",
            name_one_digit,
            "What does your function make of blk.12.attn_q.weight?",
        ),
        Misconception(
            "the layers stand outside the model",
            name_without_model,
            "In your Llama, whose attribute is `layers`? Is it the Llama's own?",
        ),
        Misconception(
            "the ending .weight is lost",
            name_without_weight,
            "A module is called q_proj. What is the name of the tensor in it?",
        ),
        Misconception(
            "the head stands inside the model",
            name_head_in_model,
            "In your Llama, is lm_head an attribute of self or of self.model?",
        ),
        Misconception(
            "gate and up are swapped",
            name_gate_is_up,
            "SiLU is applied to one of the two. Both have the same shape, so who would notice?",
        ),
        Misconception(
            "the two norms are swapped",
            name_norms_swapped,
            "attn_norm stands before attention. Which of the two norms does so in your block?",
        ),
        Misconception(
            "parts of a name are replaced inside longer ones: output in attn_output",
            name_by_replacing,
            "What does your function make of attn_output, if it replaces output first?",
        ),
        Misconception(
            "layers are counted from 1",
            name_counted_from_one,
            "What is the number of the first layer of an nn.ModuleList?",
        ),
        Misconception(
            "a name that is not in the table gives None",
            name_unknown_is_none,
            "What does the docstring promise for rope_freqs.weight?",
        ),
        Misconception(
            "the final norm stands outside the model",
            name_final_norm_in_front,
            "In your Llama, is `norm` an attribute of self or of self.model?",
        ),
    ],
    variants=[name_by_split, name_by_pattern, name_by_listing],
)


# load_checkpoint ---------------------------------------------------------------------------------


def load_probe(load, tied, tensors, assigned=False):
    """What a small model holds after `load`, which may refuse; every weight was 0.5 before."""
    model = nn.Module()
    model.config = SimpleNamespace(tie_word_embeddings=tied)
    model.model = nn.Module()
    model.model.embed_tokens = nn.Embedding(7, 4)
    model.model.norm = nn.RMSNorm(4)
    model.model.deep = nn.Linear(4, 5, bias=False)
    model.lm_head = nn.Linear(4, 7, bias=False)
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    given = dict(tensors)
    try:
        load(model, given)
    except ValueError as error:
        named = any(name in str(error) for name in (*tensors, *model.state_dict()))
        answer = "refused with a ValueError" + ("" if named else " that names no tensor")
    else:
        answer = "loaded"
    if given.keys() != tensors.keys():
        answer += ", and the dict of tensors has changed"
    held = {name: value.clone() for name, value in model.state_dict().items()}
    return answer, held, model.lm_head.weight is model.model.embed_tokens.weight


def load_cases(rng: Generator) -> list[Case]:
    def file(without: str = "", **more: Tensor) -> dict[str, Tensor]:
        tensors = {
            "lm_head.weight": normal(rng, 7, 4),
            "model.norm.weight": normal(rng, 4),
            "model.deep.weight": normal(rng, 5, 4),
            "model.embed_tokens.weight": normal(rng, 7, 4),
        }
        tensors |= {name.replace("__", "."): tensor for name, tensor in more.items()}
        tensors.pop(without, None)
        return tensors

    return [
        Case(False, file()).titled("a head of its own"),
        Case(True, file("lm_head.weight")).titled("tied, no head in the file"),
        Case(True, file()).titled("tied, and a head in the file all the same"),
        Case(False, file("lm_head.weight")).titled("not tied, but the head is missing"),
        Case(True, file("model.deep.weight")).titled("a weight is missing"),
        Case(False, file(model__extra__weight=normal(rng, 3))).titled("an unknown name"),
        Case(False, file(model__deep__weight=normal(rng, 4))).titled("a shape that broadcasts"),
        Case(False, file(model__deep__weight=normal(rng, 4, 5))).titled("a transposed weight"),
    ]


def load_checkpoint(model, tensors):
    wanted = dict(model.state_dict())
    tied = model.config.tie_word_embeddings
    if tied:
        del wanted["lm_head.weight"]
        tensors = {name: t for name, t in tensors.items() if name != "lm_head.weight"}
    if wanted.keys() != tensors.keys():
        raise ValueError(f"these names do not match: {sorted(wanted.keys() ^ tensors.keys())}")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}")
    for name, tensor in tensors.items():
        wanted[name].copy_(tensor)


def load_names_nothing(model, tensors):
    try:
        load_checkpoint(model, tensors)
    except ValueError:
        raise ValueError("the file does not fit the model") from None


def load_pops(model, tensors):
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    load_checkpoint(model, tensors)


def load_tolerates_missing(model, tensors):
    wanted = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        tensors = {name: t for name, t in tensors.items() if name != "lm_head.weight"}
    for name, tensor in tensors.items():
        if name not in wanted or tensor.shape != wanted[name].shape:
            raise ValueError(f"{name} does not fit")
    for name, tensor in tensors.items():
        wanted[name].copy_(tensor)


def load_tolerates_unknown(model, tensors):
    load_checkpoint(model, {n: t for n, t in tensors.items() if n in model.state_dict()})


def load_broadcasts(model, tensors):
    wanted = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        del wanted["lm_head.weight"]
        tensors = {name: t for name, t in tensors.items() if name != "lm_head.weight"}
    if wanted.keys() != tensors.keys():
        raise ValueError(f"the names do not match: {sorted(wanted.keys() ^ tensors.keys())}")
    try:
        for name, tensor in tensors.items():
            wanted[name].copy_(tensor)
    except RuntimeError as error:
        raise ValueError(f"{name} does not fit") from error


def load_reshapes(model, tensors):
    wanted = model.state_dict()
    fitting = {
        name: t.reshape(wanted[name].shape)
        if name in wanted and t.numel() == wanted[name].numel()
        else t
        for name, t in tensors.items()
    }
    load_checkpoint(model, fitting)


def load_before_checking(model, tensors):
    wanted = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        del wanted["lm_head.weight"]
        tensors = {name: t for name, t in tensors.items() if name != "lm_head.weight"}
    for name, tensor in tensors.items():
        if name not in wanted:
            raise ValueError(f"unknown name {name}")
        if tensor.shape != wanted[name].shape:
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}")
        wanted[name].copy_(tensor)
        del wanted[name]
    if wanted:
        raise ValueError(f"missing: {sorted(wanted)}")


def load_head_over_embedding(model, tensors):
    wanted = dict(model.state_dict())
    names = wanted.keys() - ({"lm_head.weight"} if model.config.tie_word_embeddings else set())
    if not names <= tensors.keys() <= wanted.keys():
        raise ValueError("the names do not match")
    if any(tensor.shape != wanted[name].shape for name, tensor in tensors.items()):
        raise ValueError("a shape does not match")
    for name in sorted(tensors, reverse=True):  # so the head comes last
        wanted[name].copy_(tensors[name])
    if "lm_head.weight" in tensors:
        wanted["lm_head.weight"].copy_(tensors["lm_head.weight"])


def load_wants_a_head(model, tensors):
    if "lm_head.weight" not in tensors:
        raise ValueError("lm_head.weight is missing")
    load_checkpoint(model, tensors)


def load_refuses_a_head(model, tensors):
    if model.config.tie_word_embeddings and "lm_head.weight" in tensors:
        raise ValueError("a tied model has no lm_head.weight")
    load_checkpoint(model, tensors)


def load_unties(model, tensors):
    load_checkpoint(model, tensors)
    if model.config.tie_word_embeddings:
        table = model.model.embed_tokens
        table.weight = nn.Parameter(tensors["model.embed_tokens.weight"].clone())
        with torch.no_grad():
            model.lm_head.weight.fill_(0.5)


def load_by_assigning(model, tensors):
    tied = model.config.tie_word_embeddings
    own = {name: value.shape for name, value in model.state_dict().items()}
    given = {name: value.shape for name, value in tensors.items()}
    if tied:
        own.pop("lm_head.weight")
        given.pop("lm_head.weight", None)
    if own != given:
        raise ValueError(f"these do not fit: {sorted(n for n, _ in own.items() ^ given.items())}")
    kept = {name: tensors[name] for name in given}
    model.load_state_dict(kept, strict=False, assign=True)
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight


def load_by_parameters(model, tensors):
    parameters = dict(model.named_parameters())  # a tied weight once, as the embedding's
    aliases = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    missing = [name for name in parameters if name not in tensors and name not in aliases]
    odd = [name for name in tensors if name not in parameters and name not in aliases]
    wrong = [n for n, p in parameters.items() if n in tensors and p.shape != tensors[n].shape]
    if missing or odd or wrong:
        raise ValueError(f"missing {missing}, unknown {odd}, of another shape {wrong}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def load_by_torch(model, tensors):
    tensors = dict(tensors)
    if model.config.tie_word_embeddings and "model.embed_tokens.weight" in tensors:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        model.load_state_dict(before)
        raise ValueError(str(error)) from error


LOAD_CHECKPOINT = Check(
    reference=load_checkpoint,
    points=5,
    cases=load_cases,
    probe=load_probe,
    misconceptions=[
        Misconception(
            "a missing weight is passed over in silence",
            load_tolerates_missing,
            "What does a weight hold that the file did not fill? Who would notice?",
        ),
        Misconception(
            "a tensor with an unknown name is passed over in silence",
            load_tolerates_unknown,
            "The file holds a bias that your model lacks. Are the two the same model?",
        ),
        Misconception(
            "a tensor of another shape is spread over the weight",
            load_broadcasts,
            "What does copy_ do with a row of 4 where a matrix of 5 rows of 4 is to be filled?",
        ),
        Misconception(
            "a tensor of another shape is reshaped until it fits",
            load_reshapes,
            "Is a (4, 5) matrix, read as (5, 4), its transpose? Is it anything of use?",
        ),
        Misconception(
            "weights are filled before all have been checked: a refused file leaves traces",
            load_before_checking,
            "If the last tensor is refused, what do the first ones hold by then?",
        ),
        Misconception(
            "a tied model's embedding is overwritten by the file's head",
            load_head_over_embedding,
            "If two names mean one matrix, which of the file's two tensors should it hold?",
        ),
        Misconception(
            "the message does not name the tensor",
            load_names_nothing,
            "Somebody has a file of 272 tensors, and one of them is wrong. What helps them?",
        ),
        Misconception(
            "the head is taken out of the dict that was given",
            load_pops,
            "Whose dict is it? What does your caller find in it afterwards?",
        ),
        Misconception(
            "a head is asked for even where it is tied",
            load_wants_a_head,
            "Which tensor does SmolLM2's file not have, and does the model need it?",
        ),
        Misconception(
            "a tied model refuses a file that holds a head",
            load_refuses_a_head,
            "Some files repeat the tied matrix under its second name. Is that an error?",
        ),
        Misconception(
            "head and embedding are no longer one after loading",
            load_unties,
            "If the embedding gets a new Parameter, which one does the head still hold?",
        ),
    ],
    variants=[load_by_assigning, load_by_parameters, load_by_torch],
)


# is_causal ---------------------------------------------------------------------------------------


def causal_probe(is_causal, weights, x, other, tolerance=1e-5):
    """Whether `is_causal` calls a mixture causal: y[b, i, d] = Σ_j weights[b, i, j, d] x[b, j, d].

    The model is data of the case, so neither its name nor its place tells the answer.
    """

    def model(x):
        y = x.float() if x.ndim == 3 else F.one_hot(x, 11).float()
        size, length = y.shape[:2]
        return torch.einsum("bijd,bjd->bid", weights[:size, :length, :length], y)

    return {"causal": is_causal(model, x, other, tolerance)}


def causal_cases(rng: Generator) -> list[Case]:
    def two(louder: float = 1.0) -> tuple[Tensor, Tensor]:
        x, other = normal(rng, 2, 5, 3), normal(rng, 2, 5, 3)
        return x, other + louder * other.sign()

    def past(length: int = 5, width: int = 3, own: int = 0) -> Tensor:
        """Random weights of the tokens up to one's own, or up to the one before it."""
        keep = torch.ones(length, length).tril(own)[..., None]
        return (0.5 + torch.rand(2, length, length, width, generator=rng)) * keep

    def mean(amount: float = 1.0, length: int = 5, width: int = 3) -> Tensor:
        return past(length, width) + amount / length

    def sees(i: int, j: int) -> Tensor:
        weights = past()
        weights[:, i, j] += 1
        return weights

    first = past()
    first[:, :, 1:] = 0
    alone = torch.zeros(2, 5, 5, 3)
    alone[:, 0, 1] = 1
    x, louder = two(9.0)
    shrinking = past()  # whatever changes, the one before it gets smaller
    ahead = range(1, 5)
    shrinking[:, [i - 1 for i in ahead], [*ahead]] = -(louder - x).sign()[:, 1:]
    ids, y = ids_of(rng, 2, 6), normal(rng, 2, 5, 3)
    one_number = past()
    one_number[0, 0, 1, 0] = 2e-5 / y[0, 1, 0].abs()  # and the difference is twice as large
    cases = [
        Case(past(), *two()).titled("sums of the past"),
        Case(mean(), *two()).titled("mean of all"),
        Case(past(own=-1), *two()).titled("sums of the earlier ones"),
        Case(first, *two()).titled("its first token, everywhere"),
        Case(sees(0, 1), *two()).titled("first sees second"),
        Case(sees(1, 2), *two()).titled("second sees third"),
        Case(sees(3, 4), *two()).titled("last but one sees last"),
        Case(alone, *two()).titled("first shows second, the others nothing"),
        Case(shrinking, x, louder).titled("a change makes the one before it smaller"),
        Case(mean(1e-4), *two(), 1e-2).titled("a leak below the tolerance"),
        Case(mean(1e-4), *two(), 1e-7).titled("a leak above the tolerance"),
        Case(one_number, y, -y).titled("a leak into one number"),
        Case(past(6, 11), ids, (ids + 1) % 11).titled("token ids"),
        Case(mean(1.0, 6, 11), ids, (ids + 3) % 11).titled("token ids, a mean of all"),
    ]
    # In one order, a list of answers would do.
    return [cases[i] for i in torch.randperm(len(cases), generator=rng)]


def causal_last_only(model, x, other, tolerance=1e-5):
    t = x.shape[1] - 1
    changed = model(torch.cat([x[:, :t], other[:, t:]], 1))
    return bool((changed[:, :t] - model(x)[:, :t]).abs().max() <= tolerance)


def causal_first_only(model, x, other, tolerance=1e-5):
    changed = model(torch.cat([x[:, :1], other[:, 1:]], 1))
    return bool((changed[:, :1] - model(x)[:, :1]).abs().max() <= tolerance)


def causal_never_the_last(model, x, other, tolerance=1e-5):
    outputs = model(x)
    for t in range(1, x.shape[1] - 1):
        changed = model(torch.cat([x[:, :t], other[:, t:]], 1))
        if (changed[:, :t] - outputs[:, :t]).abs().max() > tolerance:
            return False
    return True


def causal_of_means(model, x, other, tolerance=1e-5):
    outputs = model(x)
    for t in range(1, x.shape[1]):
        changed = model(torch.cat([x[:, :t], other[:, t:]], 1))
        if (changed[:, :t] - outputs[:, :t]).abs().mean() > tolerance:
            return False
    return True


def causal_through_t(model, x, other, tolerance=1e-5):
    outputs = model(x)
    for t in range(1, x.shape[1]):
        changed = model(torch.cat([x[:, :t], other[:, t:]], 1))
        if (changed[:, : t + 1] - outputs[:, : t + 1]).abs().max() > tolerance:
            return False
    return True


def causal_all_positions(model, x, other, tolerance=1e-5):
    outputs = model(x)
    for t in range(1, x.shape[1]):
        changed = model(torch.cat([x[:, :t], other[:, t:]], 1))
        if (changed - outputs).abs().max() > tolerance:
            return False
    return True


def causal_signed(model, x, other, tolerance=1e-5):
    outputs = model(x)
    for t in range(1, x.shape[1]):
        changed = model(torch.cat([x[:, :t], other[:, t:]], 1))
        if (changed[:, :t] - outputs[:, :t]).max() > tolerance:
            return False
    return True


def causal_past_changed(model, x, other, tolerance=1e-5):
    outputs = model(x)
    for t in range(1, x.shape[1]):
        changed = model(torch.cat([other[:, :t], x[:, t:]], 1))
        if (changed[:, :t] - outputs[:, :t]).abs().max() > tolerance:
            return False
    return True


def causal_future_compared(model, x, other, tolerance=1e-5):
    outputs = model(x)
    for t in range(1, x.shape[1]):
        changed = model(torch.cat([x[:, :t], other[:, t:]], 1))
        if (changed[:, t:] - outputs[:, t:]).abs().max() > tolerance:
            return False
    return True


def causal_exact(model, x, other, tolerance=1e-5):
    outputs = model(x)
    for t in range(1, x.shape[1]):
        changed = model(torch.cat([x[:, :t], other[:, t:]], 1))
        if not torch.allclose(changed[:, :t], outputs[:, :t], rtol=0, atol=1e-6):
            return False
    return True


def causal_inverted(model, x, other, tolerance=1e-5):
    return not causal_by_all(model, x, other, tolerance)


def causal_by_all(model, x, other, tolerance=1e-5):
    outputs, length = model(x), x.shape[1]
    return all(
        torch.allclose(
            model(torch.cat([x[:, :t], other[:, t:]], 1))[:, :t], outputs[:, :t], 0, tolerance
        )
        for t in range(1, length)
    )


def causal_one_position(model, x, other, tolerance=1e-5):
    outputs = model(x)
    for s in range(x.shape[1]):
        changed = x.clone()
        changed[:, s] = other[:, s]
        difference = (model(changed) - outputs).abs()[:, :s]
        if difference.numel() and difference.max() > tolerance:
            return False
    return True


def causal_worst(model, x, other, tolerance=1e-5):
    outputs, worst = model(x), 0.0
    for t in range(x.shape[1] - 1, 0, -1):
        changed = x.clone()
        changed[:, t:] = other[:, t:]
        worst = max(worst, float((model(changed)[:, :t] - outputs[:, :t]).abs().max()))
    return worst <= tolerance


IS_CAUSAL = Check(
    reference=reference.is_causal,
    points=4,
    cases=causal_cases,
    probe=causal_probe,
    misconceptions=[
        Misconception(
            "only the last token is ever changed",
            causal_last_only,
            "A model in which the first token sees the second, and no more: would you notice?",
        ),
        Misconception(
            "the last position is never changed",
            causal_never_the_last,
            "Which is the largest t that range(1, n) gives? Which t do you need at last?",
        ),
        Misconception(
            "the mean of the differences is compared, not the largest",
            causal_of_means,
            "One number of a thousand leaks. How much of that is left in the mean?",
        ),
        Misconception(
            "only the first position is ever watched",
            causal_first_only,
            "A model in which the last but one sees the last, and no more: would you notice?",
        ),
        Misconception(
            "the first changed position must not change",
            causal_through_t,
            "May the output at a position depend on the token at that position?",
        ),
        Misconception(
            "no output may change, also after the change",
            causal_all_positions,
            "Which outputs of a causal model may depend on token t?",
        ),
        Misconception(
            "only outputs that grow count as changed",
            causal_signed,
            "Is a difference of -3 above the tolerance?",
        ),
        Misconception(
            "the past is changed, and the future kept",
            causal_past_changed,
            "Causal means: blind to what comes later. What must you change to test that?",
        ),
        Misconception(
            "the outputs after the change are compared, not those before it",
            causal_future_compared,
            "Which outputs of a causal model must stay when the tokens from t on change?",
        ),
        Misconception(
            "a tolerance of its own is used, not the given one",
            causal_exact,
            "What does your function do with its last argument?",
        ),
        Misconception(
            "the answer is the wrong way round",
            causal_inverted,
            "If no output moved, what should the function say?",
        ),
    ],
    variants=[causal_by_all, causal_one_position, causal_worst],
)


# BertEncoder -------------------------------------------------------------------------------------


def bert_config(**sizes) -> dict:
    return {
        "vocab_size": 11,
        "hidden_size": 12,
        "intermediate_size": 14,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "max_position_embeddings": 9,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "tie_word_embeddings": True,
    } | sizes


def bert_probe(bert_class, config, weights, ids, attention_mask=None, token_type_ids=None):
    """What an encoder of these weights makes of the ids (0 at pads), and its gradients."""
    encoder = filled(bert_class, config, weights)
    names = sorted(name for name, _ in encoder.named_parameters())
    y = encoder(ids, attention_mask, token_type_ids)
    if attention_mask is not None:
        y = y.masked_fill((attention_mask == 0)[..., None], 0.0)
    (y * torch.linspace(-1, 1, y.shape[-1])).square().mean().backward()
    return y, gradients(encoder), names


def bert_cases(rng: Generator) -> list[Case]:
    def case(rows: int, length: int, *rest, title: str, **sizes) -> Case:
        config = bert_config(**sizes)
        weights = drawn_weights(rng, bert.BertEncoder, config)
        return Case(config, weights, ids_of(rng, rows, length), *rest).titled(title)

    padding = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    types = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 0, 1], [1, 1, 0, 0, 0]])
    return [
        case(1, 4, title="one layer", num_hidden_layers=1),
        case(2, 7, title="two layers"),
        case(2, 6, padding, title="a shorter text, padded on the right"),
        case(3, 5, None, types, title="two sentences: token types"),
    ]


class Encoder(bert.BertEncoder):
    """A right one, so that each wrong one below changes a single step."""

    def embed(self, ids, types):
        e = self.embeddings
        types = torch.zeros_like(ids) if types is None else types
        positions = torch.arange(ids.shape[1])
        return e.LayerNorm(
            e.word_embeddings(ids)
            + e.position_embeddings(positions)
            + e.token_type_embeddings(types)
        )

    def seen(self, ids, attention_mask):
        return None if attention_mask is None else (attention_mask != 0)[:, None, None, :]

    def forward(self, input_ids, attention_mask=None, token_type_ids=None):
        x = self.embed(input_ids, token_type_ids)
        for layer in self.encoder.layer:
            x = layer(x, self.seen(input_ids, attention_mask))
        return x


class EncoderWithoutNorm(Encoder):
    def embed(self, ids, types):
        e = self.embeddings
        types = torch.zeros_like(ids) if types is None else types
        x = e.word_embeddings(ids) + e.token_type_embeddings(types)
        return x + e.position_embeddings(torch.arange(ids.shape[1]))


class EncoderNormTooEarly(Encoder):
    def embed(self, ids, types):
        e = self.embeddings
        types = torch.zeros_like(ids) if types is None else types
        x = e.LayerNorm(e.word_embeddings(ids))
        return (
            x + e.position_embeddings(torch.arange(ids.shape[1])) + e.token_type_embeddings(types)
        )


class EncoderWithoutPositions(Encoder):
    def embed(self, ids, types):
        e = self.embeddings
        types = torch.zeros_like(ids) if types is None else types
        return e.LayerNorm(e.word_embeddings(ids) + e.token_type_embeddings(types))


class EncoderPositionsFromOne(Encoder):
    def embed(self, ids, types):
        e = self.embeddings
        types = torch.zeros_like(ids) if types is None else types
        positions = torch.arange(1, ids.shape[1] + 1)
        return e.LayerNorm(
            e.word_embeddings(ids)
            + e.position_embeddings(positions)
            + e.token_type_embeddings(types)
        )


class EncoderTypesIgnored(Encoder):
    def embed(self, ids, types):
        return super().embed(ids, None)


class EncoderTypesOnlyIfGiven(Encoder):
    def embed(self, ids, types):
        if types is not None:
            return super().embed(ids, types)
        e = self.embeddings
        positions = torch.arange(ids.shape[1])
        return e.LayerNorm(e.word_embeddings(ids) + e.position_embeddings(positions))


class EncoderCausal(Encoder):
    def seen(self, ids, attention_mask):
        causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
        given = super().seen(ids, attention_mask)
        return causal if given is None else causal & given


class EncoderSeesPads(Encoder):
    def seen(self, ids, attention_mask):
        return None


class EncoderMasksQueries(Encoder):
    def seen(self, ids, attention_mask):
        return None if attention_mask is None else (attention_mask != 0)[:, None, :, None]


class EncoderMaskInverted(Encoder):
    def seen(self, ids, attention_mask):
        return None if attention_mask is None else (attention_mask == 0)[:, None, None, :]


class EncoderReadsEmbeddings(Encoder):
    def forward(self, input_ids, attention_mask=None, token_type_ids=None):
        embedded = self.embed(input_ids, token_type_ids)
        for layer in self.encoder.layer:
            x = layer(embedded, self.seen(input_ids, attention_mask))
        return x


class EncoderSlices(Encoder):
    def embed(self, ids, types):
        e, length = self.embeddings, ids.shape[1]
        x = e.word_embeddings.weight[ids] + e.position_embeddings.weight[:length]
        if types is None:
            x = x + e.token_type_embeddings.weight[0]
        else:
            x = x + e.token_type_embeddings.weight[types]
        return e.LayerNorm(x)


class EncoderSquareMask(Encoder):
    def seen(self, ids, attention_mask):
        if attention_mask is None:
            attention_mask = torch.ones_like(ids)
        real = attention_mask.bool()
        return real[:, None, None, :].expand(-1, 1, ids.shape[1], -1)


class EncoderAddsScores(Encoder):
    def seen(self, ids, attention_mask):
        if attention_mask is None:
            return torch.zeros(1, 1)
        return (1.0 - attention_mask.float())[:, None, None, :] * -1e9


BERT_ENCODER = Check(
    reference=bert.BertEncoder,
    points=5,
    cases=bert_cases,
    probe=bert_probe,
    tolerance=ROUNDING,
    misconceptions=[
        Misconception(
            "the sum of the embeddings is not normalized",
            EncoderWithoutNorm,
            "Which module of self.embeddings does your forward never call?",
        ),
        Misconception(
            "the word embedding alone is normalized",
            EncoderNormTooEarly,
            "Is the norm of a sum the sum of the norms? What stands inside norm(…)?",
        ),
        Misconception(
            "positions are left out",
            EncoderWithoutPositions,
            "Attention in both directions, no mask, no RoPE: what tells the model word order?",
        ),
        Misconception(
            "positions are counted from 1",
            EncoderPositionsFromOne,
            "Which row of the table of positions does your first token get?",
        ),
        Misconception(
            "the token types that are given are ignored",
            EncoderTypesIgnored,
            "Which argument of your forward is never used?",
        ),
        Misconception(
            "without token types, the row of type 0 is not added",
            EncoderTypesOnlyIfGiven,
            "What does the docstring say that every token is of, if no types are given?",
        ),
        Misconception(
            "causal: each token sees the earlier ones only",
            EncoderCausal,
            "To fill the gap in 'the [MASK] barked', which side does the word barked stand on?",
        ),
        Misconception(
            "tokens see the padding",
            EncoderSeesPads,
            "What does your forward do with attention_mask? May a text change with its padding?",
        ),
        Misconception(
            "the mask is laid along the queries, not the keys",
            EncoderMasksQueries,
            "Scores have the axes (B, H, T, S). Along which one do the tokens stand that are seen?",
        ),
        Misconception(
            "the mask is the wrong way round",
            EncoderMaskInverted,
            "1 marks a real token. Does your mask say True or False there?",
        ),
        Misconception(
            "every layer reads the embeddings",
            EncoderReadsEmbeddings,
            "What should the second layer read?",
        ),
    ],
    variants=[EncoderSlices, EncoderSquareMask, EncoderAddsScores],
)


# Questions ---------------------------------------------------------------------------------------

EMBEDDING_SHARE = Question(
    "embedding_share",
    answer=100 * 49_152 * 576 / 134_515_008,
    tolerance=(0.0, 0.06),
    misconceptions=[
        Misconception(
            "embedding and head are counted as two matrices",
            100 * 2 * 49_152 * 576 / 134_515_008,
            "SmolLM2's embeddings are tied. How many such matrices does it have?",
        ),
        Misconception(
            "the share is given as a fraction",
            49_152 * 576 / 134_515_008,
            "The question asks for per cent. How many per cent are one fifth?",
        ),
        Misconception(
            "the embedding is compared with the rest, not with all",
            100 * 49_152 * 576 / (134_515_008 - 49_152 * 576),
            "A share of the whole: what do you divide by?",
        ),
    ],
)

EMPTY_LAYERS = Question(
    "empty_layers",
    answer="b",
    choices=("a", "b", "c", "d"),
    misconceptions=[
        Misconception(
            "a layer that adds nothing is thought to give zero",
            "a",
            "x + 0: what is left of the stream?",
        ),
        Misconception(
            "the norms inside the blocks are thought to change the stream",
            "c",
            "A block normalizes a copy. If what it makes of the copy is 0, what happens to x?",
        ),
        Misconception(
            "tokens are thought to mix without attention",
            "d",
            "Which part of a block lets one position see another? What does it add here?",
        ),
    ],
)

WHICH_MODEL = Question(
    "which_model",
    answer="c",
    choices=("a", "b", "c", "d"),
    misconceptions=[
        Misconception(
            "seeing both sides is thought to make generation better",
            "a",
            "When the next word is to be written, what stands on its right side?",
        ),
        Misconception(
            "a causal model is thought unable to classify",
            "b",
            "A Llama reads 'I loved it. Sentiment:' and predicts the next token. What may come?",
        ),
        Misconception(
            "a mask is thought to be the only difference that counts",
            "d",
            "Take the mask from a Llama: was it trained to predict a token it can see?",
        ),
    ],
)

SMOLLM2_BYTES = Question(
    "smollm2_bytes",
    answer=2 * 134_515_008,
    points=1,
    tolerance=(0.0, 0.5),
    misconceptions=[
        Misconception(
            "four bytes a parameter",
            4 * 134_515_008,
            "How many bits has a bfloat16, and how many bits has a byte?",
        ),
        Misconception(
            "parameters are taken for bytes",
            134_515_008,
            "How many bytes does one bfloat16 take?",
        ),
        Misconception(
            "the tied matrix is stored twice",
            2 * (134_515_008 + 49_152 * 576),
            "Embedding and head are one tensor. How often does it lie in memory?",
        ),
        Misconception(
            "bits are counted",
            16 * 134_515_008,
            "The question asks for bytes. How many bits are in one?",
        ),
    ],
)

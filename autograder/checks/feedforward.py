"""Chapter 07: the layer that works on each token by itself, and its gate."""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from autograder.check import Case, Check, Misconception, Question
from llmkit import feedforward as reference

# Wrong solutions and variants are written as a student would write them, each whole in itself,
# without llmkit: a class of synthetic students is made of their source.


def normal(rng: Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=rng).to(dtype)


def some(rng: Generator, low: int, high: int) -> int:
    """A whole number from low up to, but not including, high."""
    return int(torch.randint(low, high, (), generator=rng))


# silu --------------------------------------------------------------------------------------------


def silu_cases(rng: Generator) -> list[Case]:
    return [
        Case(torch.tensor([-1.0, 0.0, 1.0, 2.0])).titled("-1, 0, 1, 2"),
        Case(2 * normal(rng, 3, 7)).titled("a table of numbers"),
        Case(torch.tensor([-1000.0, -200.0, 200.0, 1000.0])).titled("numbers far from 0"),
        Case(2 * normal(rng, 6, 4, dtype=torch.float64).T).titled("float64, transposed in memory"),
    ]


def silu_sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def silu_turned_round(x: Tensor) -> Tensor:
    return x * torch.sigmoid(-x)


def silu_relu(x: Tensor) -> Tensor:
    return torch.relu(x)


def silu_gelu(x: Tensor) -> Tensor:
    return F.gelu(x)


def silu_tanh(x: Tensor) -> Tensor:
    return x * torch.tanh(x)


def silu_positive(x: Tensor) -> Tensor:
    return x.clamp_min(0) * torch.sigmoid(x)


def silu_overflowing(x: Tensor) -> Tensor:
    return x * torch.exp(x) / (1 + torch.exp(x))


def silu_of_sigmoid(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * torch.sigmoid(s)


def silu_in_place(x: Tensor) -> Tensor:
    x *= torch.sigmoid(x)
    return x


def silu_built_in(x: Tensor) -> Tensor:
    return F.silu(x)


def silu_quotient(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def silu_by_tanh(x: Tensor) -> Tensor:
    return x * (1 + torch.tanh(x / 2)) / 2


def silu_loop(x: Tensor) -> Tensor:
    def one(value: float) -> float:
        if value >= 0:
            return value / (1 + math.exp(-value))
        return value * math.exp(value) / (1 + math.exp(value))

    return torch.tensor([one(v) for v in x.flatten().tolist()], dtype=x.dtype).reshape(x.shape)


SILU = Check(
    reference=reference.silu,
    points=2,
    cases=silu_cases,
    misconceptions=[
        Misconception(
            "it is the sigmoid alone: x is not multiplied in",
            silu_sigmoid,
            "What is SiLU of 0: 0 or 0.5? And of 1000: 1000 or 1?",
        ),
        Misconception(
            "the switch is turned round: it is open for negative numbers",
            silu_turned_round,
            "Which number should come through almost unchanged: 10 or -10?",
        ),
        Misconception(
            "it is ReLU: negative numbers give exactly 0",
            silu_relu,
            "How far open is the switch at -1: shut, or a little more than a quarter?",
        ),
        Misconception(
            "it is GELU: another switch",
            silu_gelu,
            "SiLU of 1 is 0.7311, GELU of 1 is 0.8413. Which of them is 1 times the sigmoid of 1?",
        ),
        Misconception(
            "tanh takes the place of the sigmoid",
            silu_tanh,
            "Between which two values does the sigmoid lie? And tanh?",
        ),
        Misconception(
            "negative numbers are cut off before the product",
            silu_positive,
            "What is -1 times 0.2689? Should that be cut off?",
        ),
        Misconception(
            "the sigmoid is exp(x) / (1 + exp(x)), which is infinity over infinity at 1000",
            silu_overflowing,
            "What is torch.exp of 1000? Which form of the sigmoid never divides it by itself?",
        ),
        Misconception(
            "SiLU is taken of the sigmoid, not of x",
            silu_of_sigmoid,
            "The result for 1000 should be 1000. Where in your function is x itself left?",
        ),
        Misconception(
            "the caller's tensor is overwritten",
            silu_in_place,
            "Does x *= … make a new tensor, or does it write into the caller's?",
        ),
    ],
    variants=[silu_built_in, silu_quotient, silu_by_tanh, silu_loop],
)


# gelu_feedforward --------------------------------------------------------------------------------


def gelu_cases(rng: Generator) -> list[Case]:
    def weights(dim: int, width: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        shapes = (width, dim), (width,), (dim, width), (dim,)
        return [normal(rng, *shape, dtype=dtype) / 2 for shape in shapes]

    return [
        Case(normal(rng, 3, 4), *weights(4, 7)).titled("three tokens"),
        Case(normal(rng, 2, 3, 5), *weights(5, 8)).titled("two texts of three tokens"),
        Case(normal(rng, 6), *weights(6, 4)).titled("one token, a narrow layer"),
        Case(normal(rng, 4, 9, dtype=torch.float64).T, *weights(4, 6, torch.float64)).titled(
            "float64, transposed in memory"
        ),
    ]


def gelu_relu(x, weight_in, bias_in, weight_out, bias_out):
    return torch.relu(x @ weight_in.T + bias_in) @ weight_out.T + bias_out


def gelu_silu(x, weight_in, bias_in, weight_out, bias_out):
    return F.silu(x @ weight_in.T + bias_in) @ weight_out.T + bias_out


def gelu_tanh(x, weight_in, bias_in, weight_out, bias_out):
    hidden = F.gelu(x @ weight_in.T + bias_in, approximate="tanh")
    return hidden @ weight_out.T + bias_out


def gelu_missing(x, weight_in, bias_in, weight_out, bias_out):
    return (x @ weight_in.T + bias_in) @ weight_out.T + bias_out


def gelu_twice(x, weight_in, bias_in, weight_out, bias_out):
    return F.gelu(F.gelu(x @ weight_in.T + bias_in) @ weight_out.T + bias_out)


def gelu_at_the_end(x, weight_in, bias_in, weight_out, bias_out):
    return F.gelu((x @ weight_in.T + bias_in) @ weight_out.T + bias_out)


def gelu_bias_late(x, weight_in, bias_in, weight_out, bias_out):
    return (F.gelu(x @ weight_in.T) + bias_in) @ weight_out.T + bias_out


def gelu_no_bias_out(x, weight_in, bias_in, weight_out, bias_out):
    return F.gelu(x @ weight_in.T + bias_in) @ weight_out.T


def gelu_no_biases(x, weight_in, bias_in, weight_out, bias_out):
    return F.gelu(x @ weight_in.T) @ weight_out.T


def gelu_switch_only(x, weight_in, bias_in, weight_out, bias_out):
    hidden = x @ weight_in.T + bias_in
    switch = (1 + torch.erf(hidden / math.sqrt(2))) / 2
    return switch @ weight_out.T + bias_out


def gelu_residual(x, weight_in, bias_in, weight_out, bias_out):
    return x + F.gelu(x @ weight_in.T + bias_in) @ weight_out.T + bias_out


def gelu_built_in(x, weight_in, bias_in, weight_out, bias_out):
    hidden = F.linear(x, weight_in, bias_in)
    return F.linear(F.gelu(hidden), weight_out, bias_out)


def gelu_by_erf(x, weight_in, bias_in, weight_out, bias_out):
    hidden = x @ weight_in.T + bias_in
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return hidden @ weight_out.T + bias_out


def gelu_einsum(x, weight_in, bias_in, weight_out, bias_out):
    hidden = torch.einsum("...d,fd->...f", x, weight_in) + bias_in
    return torch.einsum("...f,df->...d", nn.GELU()(hidden), weight_out) + bias_out


def gelu_by_neuron(x, weight_in, bias_in, weight_out, bias_out):
    out = bias_out.expand(x.shape).clone()
    for reads, bias, writes in zip(weight_in, bias_in, weight_out.T, strict=True):
        out += F.gelu((x * reads).sum(-1, keepdim=True) + bias) * writes
    return out


GELU_FEEDFORWARD = Check(
    reference=reference.gelu_feedforward,
    points=3,
    cases=gelu_cases,
    misconceptions=[
        Misconception(
            "the bend is ReLU, not GELU",
            gelu_relu,
            "What does your layer make of a hidden number of -1: exactly 0, or a little less?",
        ),
        Misconception(
            "the bend is SiLU, not GELU",
            gelu_silu,
            "Which switch belongs to GELU: the sigmoid σ, or the normal distribution's Φ?",
        ),
        Misconception(
            "GELU is approximated with tanh",
            gelu_tanh,
            "The docstring asks for the exact Φ. What is the default of F.gelu's approximate?",
        ),
        Misconception(
            "there is no bend between the two matrices",
            gelu_missing,
            "What can two matrices in a row say that one matrix cannot?",
        ),
        Misconception(
            "the output is bent as well",
            gelu_twice,
            "Can your layer add -5 to a feature of the stream? Should it be able to?",
        ),
        Misconception(
            "the bend stands after both matrices, not between them",
            gelu_at_the_end,
            "Which numbers pass the bend: the F hidden ones, or the D that go back?",
        ),
        Misconception(
            "the first bias is added after the bend",
            gelu_bias_late,
            "A neuron's bias says from where on it wakes. Does it have to come before the bend?",
        ),
        Misconception(
            "the second bias is not used",
            gelu_no_bias_out,
            "What should come out if weight_out is all zeros?",
        ),
        Misconception(
            "neither bias is used",
            gelu_no_biases,
            "The function is given five tensors. How many of them does it read?",
        ),
        Misconception(
            "Φ is not multiplied by its input",
            gelu_switch_only,
            "GELU(x) = x · Φ(x). What is GELU of 100: 100 or 1?",
        ),
        Misconception(
            "x is added to the result",
            gelu_residual,
            "Who adds x back: the layer, or the block around it that you built in chapter 06?",
        ),
    ],
    variants=[gelu_built_in, gelu_by_erf, gelu_einsum, gelu_by_neuron],
)


# silu_gradient -----------------------------------------------------------------------------------


def gradient_cases(rng: Generator) -> list[Case]:
    return [
        Case(torch.tensor([-2.0, 0.0, 1.0, 2.0])).titled("-2, 0, 1, 2"),
        Case(2 * normal(rng, 4, 5)).titled("a table of numbers"),
        Case(torch.tensor([-1000.0, -200.0, 200.0, 1000.0])).titled("numbers far from 0"),
        Case(2 * normal(rng, 7, 3, dtype=torch.float64).T).titled("float64, transposed in memory"),
    ]


def gradient_sigmoid_only(x: Tensor) -> Tensor:
    return torch.sigmoid(x)


def gradient_of_sigmoid(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 - s)


def gradient_second_term_only(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return x * s * (1 - s)


def gradient_without_x(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s + s * (1 - s)


def gradient_of_relu(x: Tensor) -> Tensor:
    return (x > 0).to(x.dtype)


def gradient_minus(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s - x * s * (1 - s)


def gradient_slope_of_silu(x: Tensor) -> Tensor:
    y = x * torch.sigmoid(x)
    return y * (1 - y)


def gradient_one_plus(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 + x * (1 + s))


def gradient_overflowing(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s + x * torch.exp(-x) / (1 + torch.exp(-x)) ** 2


def gradient_of_mean(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s)) / x.numel()


def gradient_two_terms(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s + x * s * (1 - s)


def gradient_by_autograd(x: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        (found,) = torch.autograd.grad(F.silu(leaf).sum(), leaf)
    return found


def gradient_through_silu(x: Tensor) -> Tensor:
    y, s = F.silu(x), torch.sigmoid(x)
    return y + s * (1 - y)


def gradient_loop(x: Tensor) -> Tensor:
    slopes = []
    for value in x.flatten().tolist():
        s = 1 / (1 + math.exp(-value)) if value > -500 else 0.0
        slopes.append(s * (1 + value * (1 - s)))
    return torch.tensor(slopes, dtype=x.dtype).reshape(x.shape)


SILU_GRADIENT = Check(
    reference=reference.silu_gradient,
    points=4,
    cases=gradient_cases,
    misconceptions=[
        Misconception(
            "only x is taken to change: the switch is held still",
            gradient_sigmoid_only,
            "In x · σ(x), how many factors move when x moves? How many terms has your sum?",
        ),
        Misconception(
            "it is the derivative of the sigmoid alone",
            gradient_of_sigmoid,
            "Far to the right SiLU is almost x. What is the slope of x? And yours at 1000?",
        ),
        Misconception(
            "only the switch is taken to change: the first term is missing",
            gradient_second_term_only,
            "At x = 0, is SiLU flat? What is your slope there?",
        ),
        Misconception(
            "the second term lacks its factor x",
            gradient_without_x,
            "The product rule keeps one factor and differentiates the other. Which one is kept?",
        ),
        Misconception(
            "it is the derivative of ReLU: 0 or 1",
            gradient_of_relu,
            "Does the curve of SiLU have a corner at 0?",
        ),
        Misconception(
            "the second term is subtracted",
            gradient_minus,
            "Does the switch open or close when x grows? So which sign has σ'?",
        ),
        Misconception(
            "σ(1 - σ) is used with SiLU in the place of σ",
            gradient_slope_of_silu,
            "For which function does the rule 'itself times one minus itself' hold?",
        ),
        Misconception(
            "σ' is taken for σ(1 + σ)",
            gradient_one_plus,
            "Far to the right the sigmoid is flat at 1. What does your σ' give there?",
        ),
        Misconception(
            "σ' is written with exp(-x), which overflows far to the left",
            gradient_overflowing,
            "What is torch.exp of 1000? Can you write σ' with σ alone?",
        ),
        Misconception(
            "the result is divided by the number of elements",
            gradient_of_mean,
            "Is this the slope at each number, or the gradient of a mean over all of them?",
        ),
    ],
    variants=[gradient_two_terms, gradient_by_autograd, gradient_through_silu, gradient_loop],
)


# swiglu ------------------------------------------------------------------------------------------


def by_hand() -> list[Tensor]:
    """The chapter's example: one token of two features, three neurons."""
    return [
        torch.tensor([[1.0, 2.0]]),
        torch.tensor([[2.0, 0.0], [2.0, -1.0], [1.0, -1.0]]),
        torch.tensor([[1.0, 1.0], [3.0, 1.0], [0.0, 2.0]]),
        torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 2.0]]),
    ]


def gated_numbers(
    rng: Generator, *shape: int, width: int, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    dim = shape[-1]
    shapes = shape, (width, dim), (width, dim), (dim, width)
    x, *weights = (normal(rng, *each, dtype=dtype) for each in shapes)
    return [x, *(weight / 2 for weight in weights)]


def swiglu_cases(rng: Generator) -> list[Case]:
    transposed = gated_numbers(rng, 3, 7, width=5, dtype=torch.float64)
    transposed[0] = normal(rng, 7, 3, dtype=torch.float64).T
    transposed[3] = normal(rng, 5, 7, dtype=torch.float64).T
    return [
        Case(*by_hand()).titled("the example by hand"),
        Case(*gated_numbers(rng, 3, 4, width=6)).titled("three tokens"),
        Case(*gated_numbers(rng, 2, 3, 5, width=8)).titled("two texts of three tokens"),
        Case(*gated_numbers(rng, 6, width=4)).titled("one token, a narrow layer"),
        Case(*transposed).titled("float64, transposed in memory"),
    ]


def swiglu_swapped(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return ((x @ gate.T) * F.silu(x @ up.T)) @ down.T


def swiglu_of_product(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return F.silu((x @ gate.T) * (x @ up.T)) @ down.T


def swiglu_sigmoid(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return (torch.sigmoid(x @ gate.T) * (x @ up.T)) @ down.T


def swiglu_bilinear(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return ((x @ gate.T) * (x @ up.T)) @ down.T


def swiglu_both(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return (F.silu(x @ gate.T) * F.silu(x @ up.T)) @ down.T


def swiglu_added(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return (F.silu(x @ gate.T) + x @ up.T) @ down.T


def swiglu_down_twice(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return (F.silu(x @ gate.T) @ down.T) * (x @ up.T @ down.T)


def swiglu_without_up(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return F.silu(x @ gate.T) @ down.T


def swiglu_gelu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return (F.gelu(x @ gate.T) * (x @ up.T)) @ down.T


def swiglu_chained(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    gated = F.silu(x @ gate.T) * (x @ up.T)
    return F.silu(gated @ down.T)


def swiglu_stack(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    g, u = (x @ torch.cat((gate, up)).T).chunk(2, dim=-1)
    return (F.silu(g) * u) @ down.T


def swiglu_matmul(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    g = x @ gate.T
    return (g / (1 + torch.exp(-g)) * (x @ up.T)) @ down.T


def swiglu_einsum(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    g = torch.einsum("...d,fd->...f", x, gate)
    u = torch.einsum("...d,fd->...f", x, up)
    return torch.einsum("...f,...f,...f,df->...d", g, torch.sigmoid(g), u, down)


def swiglu_by_neuron(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for reads, carries, writes in zip(gate, up, down.T, strict=True):
        g = (x * reads).sum(-1, keepdim=True)
        u = (x * carries).sum(-1, keepdim=True)
        out += g * torch.sigmoid(g) * u * writes
    return out


SWIGLU = Check(
    reference=reference.swiglu,
    points=4,
    cases=swiglu_cases,
    misconceptions=[
        Misconception(
            "SiLU bends the up branch, not the gate",
            swiglu_swapped,
            "In the example, which branch gives 2, 0, -1? Which of the two goes through SiLU?",
        ),
        Misconception(
            "SiLU is taken of the product: the parenthesis is misplaced",
            swiglu_of_product,
            "Does the bend come before the two branches meet, or after?",
        ),
        Misconception(
            "the gate is the sigmoid alone: this is the older GLU",
            swiglu_sigmoid,
            "What does a gate of 2 do to the other branch: 0.8808 times, or 1.7616 times?",
        ),
        Misconception(
            "the gate is not bent at all",
            swiglu_bilinear,
            "In the example a gate of -1 gives a factor. Is it -1 or -0.2689?",
        ),
        Misconception(
            "both branches are bent",
            swiglu_both,
            "How many times does silu stand in the formula?",
        ),
        Misconception(
            "the branches are added, not multiplied",
            swiglu_added,
            "If the gate of a neuron is 0, how much of its up branch should come through?",
        ),
        Misconception(
            "each branch is projected down before they meet",
            swiglu_down_twice,
            "How many numbers does the product have in the example: three, or two?",
        ),
        Misconception(
            "the up branch is not used",
            swiglu_without_up,
            "The function is given three matrices. How many of them does it read?",
        ),
        Misconception(
            "the gate is bent by GELU: this is GEGLU",
            swiglu_gelu,
            "Which function gives 1.7616 for 2: the one with σ, or the one with Φ?",
        ),
        Misconception(
            "the result is bent once more after down",
            swiglu_chained,
            "Can your layer add -5 to a feature of the stream? Should it be able to?",
        ),
    ],
    variants=[swiglu_stack, swiglu_matmul, swiglu_einsum, swiglu_by_neuron],
)


# SwiGLU ------------------------------------------------------------------------------------------


def layer_probe(layer_class, dim, hidden_dim, numbers):
    """The parameters of a layer of this class, what it does to x, and its gradients.

    numbers: x and the weights gate, up and down.
    """
    x, *weights = numbers
    layer = layer_class(dim, hidden_dim).to(x.dtype)
    shapes = {name: list(p.shape) for name, p in sorted(layer.named_parameters())}
    projections = [layer.gate_proj, layer.up_proj, layer.down_proj]
    if any(p.weight.shape != w.shape for p, w in zip(projections, weights, strict=True)):
        return shapes, None, None, None
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        for projection, weight in zip(projections, weights, strict=True):
            projection.weight.copy_(weight)
        y = layer(x)
    leaf = x.clone().requires_grad_()
    layer(leaf).pow(2).sum().backward()
    return shapes, y, leaf.grad, [projection.weight.grad for projection in projections]


def layer_cases(rng: Generator) -> list[Case]:
    return [
        Case(2, 3, by_hand()).titled("the example by hand"),
        Case(4, 7, gated_numbers(rng, 3, 4, width=7)).titled("three tokens"),
        Case(6, 5, gated_numbers(rng, 2, 3, 6, width=5)).titled(
            "two texts of three tokens, a narrow layer"
        ),
        Case(5, 8, gated_numbers(rng, 4, 5, width=8, dtype=torch.float64)).titled("float64"),
    ]


class LayerSwapped(nn.Module):
    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden_dim, bias=False)
        self.up_proj = nn.Linear(dim, hidden_dim, bias=False)
        self.down_proj = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.gate_proj(x) * F.silu(self.up_proj(x)))


class LayerWithBiases(nn.Module):
    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden_dim)
        self.up_proj = nn.Linear(dim, hidden_dim)
        self.down_proj = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class LayerShared(nn.Module):
    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.gate_proj = self.up_proj = nn.Linear(dim, hidden_dim, bias=False)
        self.down_proj = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class LayerOwnWidth(nn.Module):
    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.gate_proj = nn.Linear(dim, 4 * dim, bias=False)
        self.up_proj = nn.Linear(dim, 4 * dim, bias=False)
        self.down_proj = nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class LayerSizesTurned(nn.Module):
    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.gate_proj = nn.Linear(hidden_dim, dim, bias=False)
        self.up_proj = nn.Linear(hidden_dim, dim, bias=False)
        self.down_proj = nn.Linear(dim, hidden_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class LayerOfProduct(nn.Module):
    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden_dim, bias=False)
        self.up_proj = nn.Linear(dim, hidden_dim, bias=False)
        self.down_proj = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x) * self.up_proj(x)))


class LayerNotBent(nn.Module):
    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden_dim, bias=False)
        self.up_proj = nn.Linear(dim, hidden_dim, bias=False)
        self.down_proj = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.gate_proj(x) * self.up_proj(x))


class LayerSigmoid(nn.Module):
    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden_dim, bias=False)
        self.up_proj = nn.Linear(dim, hidden_dim, bias=False)
        self.down_proj = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(torch.sigmoid(self.gate_proj(x)) * self.up_proj(x))


class LayerResidual(nn.Module):
    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden_dim, bias=False)
        self.up_proj = nn.Linear(dim, hidden_dim, bias=False)
        self.down_proj = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class LayerWithoutDown(nn.Module):
    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden_dim, bias=False)
        self.up_proj = nn.Linear(dim, hidden_dim, bias=False)
        self.down_proj = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.gate_proj(x)) * self.up_proj(x)


class LayerGateDetached(nn.Module):
    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden_dim, bias=False)
        self.up_proj = nn.Linear(dim, hidden_dim, bias=False)
        self.down_proj = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.silu(self.gate_proj(x)).detach()
        return self.down_proj(gate * self.up_proj(x))


class LayerModule(nn.Module):
    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.down_proj = nn.Linear(hidden_dim, dim, bias=False)
        self.up_proj = nn.Linear(dim, hidden_dim, bias=False)
        self.gate_proj = nn.Linear(dim, hidden_dim, bias=False)
        self.bend = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.up_proj(x) * self.bend(self.gate_proj(x)))


class LayerByLoop(nn.Module):
    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        sizes = {
            "gate_proj": (dim, hidden_dim),
            "up_proj": (dim, hidden_dim),
            "down_proj": (hidden_dim, dim),
        }
        for name, (reads, writes) in sizes.items():
            self.add_module(name, nn.Linear(reads, writes, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        g, u = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(g * torch.sigmoid(g) * u)


class LayerFused(nn.Module):
    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden_dim, bias=False)
        self.up_proj = nn.Linear(dim, hidden_dim, bias=False)
        self.down_proj = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat((self.gate_proj.weight, self.up_proj.weight))
        g, u = F.linear(x, both).chunk(2, dim=-1)
        return F.linear(F.silu(g) * u, self.down_proj.weight)


SWIGLU_LAYER = Check(
    reference=reference.SwiGLU,
    points=4,
    cases=layer_cases,
    probe=layer_probe,
    misconceptions=[
        Misconception(
            "SiLU bends up_proj's branch, not gate_proj's",
            LayerSwapped,
            "Give gate_proj a weight of zeros. What is silu(0), and what should come out?",
        ),
        Misconception(
            "the projections have biases",
            LayerWithBiases,
            "Print the names of layer.named_parameters(). How many should there be?",
        ),
        Misconception(
            "gate_proj and up_proj are one and the same layer",
            LayerShared,
            "Does a = b = nn.Linear(…) make two layers, or one with two names?",
        ),
        Misconception(
            "hidden_dim is not used: the width is always 4 · dim",
            LayerOwnWidth,
            "What does your layer do when it is made with dim=6 and hidden_dim=5?",
        ),
        Misconception(
            "the sizes of the projections are turned round",
            LayerSizesTurned,
            "nn.Linear(a, b): is a the number of features that come in, or that go out?",
        ),
        Misconception(
            "SiLU is taken of the product of both branches",
            LayerOfProduct,
            "Does the bend come before the two branches meet, or after?",
        ),
        Misconception(
            "the gate is not bent at all",
            LayerNotBent,
            "Where in forward does your silu, or PyTorch's, stand?",
        ),
        Misconception(
            "the gate is bent by the sigmoid alone",
            LayerSigmoid,
            "A gate whose input is 0: should it be shut, or half open?",
        ),
        Misconception(
            "x is added to the result",
            LayerResidual,
            "Who adds x back: the layer, or the block around it that you built in chapter 06?",
        ),
        Misconception(
            "down_proj is made, but not used",
            LayerWithoutDown,
            "The docstring promises the shape (..., D). How wide is what you return?",
        ),
        Misconception(
            "no gradient goes back through the gate",
            LayerGateDetached,
            "Training must teach the gate when to open. What does detach() do to its gradient?",
        ),
    ],
    variants=[LayerModule, LayerByLoop, LayerFused],
)


# neuron_contributions ----------------------------------------------------------------------------


def contribution_cases(rng: Generator) -> list[Case]:
    return [
        Case(
            torch.tensor([5.0, 0.0, -1.0]), torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 2.0]])
        ).titled("three neurons, two features"),
        Case(normal(rng, 4, 6), normal(rng, 5, 6)).titled("four tokens"),
        Case(normal(rng, 2, 3, 4), normal(rng, 7, 4)).titled("two texts of three tokens"),
        Case(
            normal(rng, 5, 3, dtype=torch.float64).T, normal(rng, 5, 8, dtype=torch.float64).T
        ).titled("float64, transposed in memory"),
    ]


def contribution_turned(hidden: Tensor, down: Tensor) -> Tensor:
    return hidden.unsqueeze(-2) * down


def contribution_summed(hidden: Tensor, down: Tensor) -> Tensor:
    return hidden @ down.T


def contribution_unscaled(hidden: Tensor, down: Tensor) -> Tensor:
    return down.T.expand(*hidden.shape, down.shape[0]).clone()


def contribution_size(hidden: Tensor, down: Tensor) -> Tensor:
    return hidden.abs().unsqueeze(-1) * down.T


def contribution_switched(hidden: Tensor, down: Tensor) -> Tensor:
    return (hidden > 0).to(hidden.dtype).unsqueeze(-1) * down.T


def contribution_bent(hidden: Tensor, down: Tensor) -> Tensor:
    return F.silu(hidden).unsqueeze(-1) * down.T


def contribution_lengths(hidden: Tensor, down: Tensor) -> Tensor:
    return (hidden.unsqueeze(-1) * down.T).norm(dim=-1)


def contribution_share(hidden: Tensor, down: Tensor) -> Tensor:
    return hidden.unsqueeze(-1) * down.T / hidden.shape[-1]


def contribution_einsum(hidden: Tensor, down: Tensor) -> Tensor:
    return torch.einsum("...f,df->...fd", hidden, down)


def contribution_diagonal(hidden: Tensor, down: Tensor) -> Tensor:
    return torch.diag_embed(hidden) @ down.T


def contribution_loop(hidden: Tensor, down: Tensor) -> Tensor:
    columns = [hidden[..., f, None] * down[:, f] for f in range(down.shape[1])]
    return torch.stack(columns, dim=-2)


def contribution_one_at_a_time(hidden: Tensor, down: Tensor) -> Tensor:
    alone = torch.eye(hidden.shape[-1], dtype=hidden.dtype) * hidden.unsqueeze(-2)
    return F.linear(alone, down)


NEURON_CONTRIBUTIONS = Check(
    reference=reference.neuron_contributions,
    points=3,
    cases=contribution_cases,
    misconceptions=[
        Misconception(
            "the last two dimensions are turned round: (..., D, F)",
            contribution_turned,
            "result[..., 2, :] should be what neuron 2 writes. How many numbers does it write?",
        ),
        Misconception(
            "the neurons are already added up: this is the output of the layer",
            contribution_summed,
            "How many vectors should there be for one token: one, or one for each neuron?",
        ),
        Misconception(
            "the columns are not multiplied by the neurons' values",
            contribution_unscaled,
            "What should a neuron add whose value is 0?",
        ),
        Misconception(
            "the sign of a neuron's value is lost",
            contribution_size,
            "A neuron of value -1 takes its column away. Does yours?",
        ),
        Misconception(
            "a neuron counts as on or off, whatever its value",
            contribution_switched,
            "What does a neuron of value 5 add: its column once, or five times?",
        ),
        Misconception(
            "the hidden values are bent again",
            contribution_bent,
            "`hidden` is what reaches down. Has the bend come before, or does it come after?",
        ),
        Misconception(
            "only the length of each contribution is returned",
            contribution_lengths,
            "The docstring promises the shape (..., F, D). What becomes of D?",
        ),
        Misconception(
            "the contributions are divided by the number of neurons",
            contribution_share,
            "Add yours up over the neurons. Is that the output of the layer, or a part of it?",
        ),
    ],
    variants=[
        contribution_einsum,
        contribution_diagonal,
        contribution_loop,
        contribution_one_at_a_time,
    ],
)


# hidden_width ------------------------------------------------------------------------------------


def width_cases(rng: Generator) -> list[Case]:
    return [
        Case(4096).titled("Llama 1 and 2, 7B"),
        Case(5120).titled("Llama 1 and 2, 13B"),
        Case(576).titled("SmolLM2, which divides evenly"),
        Case(8192, 4096, 1.3).titled("Llama 2 and 3, 70B"),
        Case(4096, 1024, 1.3).titled("Llama 3, 8B"),
        Case(2048, multiplier=1.5).titled("Llama 3.2, 1B"),
        Case(10, 1).titled("a multiple of 1"),
        # 8/3 of these is whole, and 8 under a multiple of 32
        Case(48 * some(rng, 5, 600) + 9, multiple_of=32).titled("a width of its own"),
    ]


def width_down(dim: int, multiple_of: int = 256, multiplier: float = 1.0) -> int:
    return int(multiplier * int(8 * dim / 3)) // multiple_of * multiple_of


def width_nearest(dim: int, multiple_of: int = 256, multiplier: float = 1.0) -> int:
    return round(int(multiplier * int(8 * dim / 3)) / multiple_of) * multiple_of


def width_four(dim: int, multiple_of: int = 256, multiplier: float = 1.0) -> int:
    return math.ceil(int(multiplier * 4 * dim) / multiple_of) * multiple_of


def width_two_thirds(dim: int, multiple_of: int = 256, multiplier: float = 1.0) -> int:
    return math.ceil(int(multiplier * int(2 * dim / 3)) / multiple_of) * multiple_of


def width_without_multiplier(dim: int, multiple_of: int = 256, multiplier: float = 1.0) -> int:
    return math.ceil(int(8 * dim / 3) / multiple_of) * multiple_of


def width_multiplied_late(dim: int, multiple_of: int = 256, multiplier: float = 1.0) -> int:
    return int(multiplier * (math.ceil(int(8 * dim / 3) / multiple_of) * multiple_of))


def width_always_256(dim: int, multiple_of: int = 256, multiplier: float = 1.0) -> int:
    return math.ceil(int(multiplier * int(8 * dim / 3)) / 256) * 256


def width_one_more(dim: int, multiple_of: int = 256, multiplier: float = 1.0) -> int:
    return (int(multiplier * int(8 * dim / 3)) // multiple_of + 1) * multiple_of


def width_not_rounded(dim: int, multiple_of: int = 256, multiplier: float = 1.0) -> int:
    return int(multiplier * int(8 * dim / 3))


def width_of_fraction(dim: int, multiple_of: int = 256, multiplier: float = 1.0) -> int:
    return math.ceil(multiplier * 8 * dim / 3 / multiple_of) * multiple_of


def width_multiples_only(dim: int, multiple_of: int = 256, multiplier: float = 1.0) -> int:
    return math.ceil(int(multiplier * int(8 * dim / 3)) / multiple_of)


def width_as_meta(dim: int, multiple_of: int = 256, multiplier: float = 1.0) -> int:
    width = int(2 * (4 * dim) / 3)
    width = int(multiplier * width)
    return multiple_of * ((width + multiple_of - 1) // multiple_of)


def width_ceil(dim: int, multiple_of: int = 256, multiplier: float = 1.0) -> int:
    width = math.floor(multiplier * math.floor(8 * dim / 3))
    return math.ceil(width / multiple_of) * multiple_of


def width_remainder(dim: int, multiple_of: int = 256, multiplier: float = 1.0) -> int:
    width = int((8 * dim // 3) * multiplier)
    return width + -width % multiple_of


def width_counting(dim: int, multiple_of: int = 256, multiplier: float = 1.0) -> int:
    least = int(multiplier * (8 * dim // 3))
    width = 0
    while width < least:
        width += multiple_of
    return width


HIDDEN_WIDTH = Check(
    reference=reference.hidden_width,
    points=3,
    cases=width_cases,
    misconceptions=[
        Misconception(
            "the width is rounded down to the multiple",
            width_down,
            "10,922 lies between 10,752 and 11,008. Which of them does Llama 2 7B have?",
        ),
        Misconception(
            "the width is rounded to the nearest multiple",
            width_nearest,
            "13,653 is nearer to 13,568 than to 13,824. Which of them does Llama 2 13B have?",
        ),
        Misconception(
            "the 2/3 is missing: this is the width of an ordinary layer",
            width_four,
            "With three matrices as wide as two were before, are there as many parameters?",
        ),
        Misconception(
            "the 4 is missing: 2/3 is taken of dim, not of 4 · dim",
            width_two_thirds,
            "Is the hidden vector of a feed-forward layer wider or narrower than the stream?",
        ),
        Misconception(
            "the multiplier is not used",
            width_without_multiplier,
            "What does your function do when it is called with multiplier=1.3?",
        ),
        Misconception(
            "the multiplier comes after the rounding",
            width_multiplied_late,
            "Is your result for multiplier=1.3 still a multiple of 4096?",
        ),
        Misconception(
            "multiple_of is not used: it is always 256",
            width_always_256,
            "What does your function do when it is called with multiple_of=1024?",
        ),
        Misconception(
            "a width that is a multiple already grows by one multiple more",
            width_one_more,
            "8 · 576 / 3 is 1536, which is 6 · 256. What should be rounded up there?",
        ),
        Misconception(
            "the width is not rounded up to a multiple",
            width_not_rounded,
            "What is your result for 4096, divided by 256?",
        ),
        Misconception(
            "the fraction is not rounded down before the rounding up",
            width_of_fraction,
            "8 · 10 / 3 is 26.67. With multiple_of=1, does Meta's rule give 26 or 27?",
        ),
        Misconception(
            "the number of multiples is returned, not the width",
            width_multiples_only,
            "Your result counts multiples. How many neurons are that?",
        ),
    ],
    variants=[width_as_meta, width_ceil, width_remainder, width_counting],
)


# feedforward_parameters --------------------------------------------------------------------------


def parameter_cases(rng: Generator) -> list[Case]:
    dim, width = some(rng, 20, 200), some(rng, 300, 900)
    return [
        Case(2, 3).titled("the example by hand"),
        Case(2, 3, False).titled("the example, not gated"),
        Case(576, 1536).titled("SmolLM2"),
        Case(dim, width, gated=False).titled("any widths, not gated"),
        Case(width, dim, gated=True).titled("a narrow layer"),
    ]


def parameters_two(dim: int, hidden_dim: int, gated: bool = True) -> int:
    return 2 * dim * hidden_dim + (0 if gated else hidden_dim + dim)


def parameters_always_three(dim: int, hidden_dim: int, gated: bool = True) -> int:
    return 3 * dim * hidden_dim


def parameters_without_biases(dim: int, hidden_dim: int, gated: bool = True) -> int:
    return (3 if gated else 2) * dim * hidden_dim


def parameters_all_biases(dim: int, hidden_dim: int, gated: bool = True) -> int:
    if gated:
        return 3 * dim * hidden_dim + 2 * hidden_dim + dim
    return 2 * dim * hidden_dim + hidden_dim + dim


def parameters_hidden_biases(dim: int, hidden_dim: int, gated: bool = True) -> int:
    return 3 * dim * hidden_dim if gated else 2 * (dim * hidden_dim + hidden_dim)


def parameters_turned(dim: int, hidden_dim: int, gated: bool = True) -> int:
    return 2 * dim * hidden_dim + hidden_dim + dim if gated else 3 * dim * hidden_dim


def parameters_square_gate(dim: int, hidden_dim: int, gated: bool = True) -> int:
    if gated:
        return 2 * dim * hidden_dim + hidden_dim * hidden_dim
    return 2 * dim * hidden_dim + hidden_dim + dim


def parameters_features(dim: int, hidden_dim: int, gated: bool = True) -> int:
    if gated:
        return 2 * hidden_dim + dim
    return hidden_dim + dim


def parameters_closed_form(dim: int, hidden_dim: int, gated: bool = True) -> int:
    return dim * hidden_dim * 3 if gated else hidden_dim * (dim + 1) + dim * (hidden_dim + 1)


def parameters_by_shape(dim: int, hidden_dim: int, gated: bool = True) -> int:
    shapes = [(hidden_dim, dim), (dim, hidden_dim)]
    shapes += [(hidden_dim, dim)] if gated else [(hidden_dim,), (dim,)]
    return sum(math.prod(shape) for shape in shapes)


def parameters_of_layers(dim: int, hidden_dim: int, gated: bool = True) -> int:
    with torch.device("meta"):  # sizes without numbers
        layers = [nn.Linear(dim, hidden_dim, not gated), nn.Linear(hidden_dim, dim, not gated)]
        if gated:
            layers.append(nn.Linear(dim, hidden_dim, bias=False))
    return sum(p.numel() for layer in layers for p in layer.parameters())


FEEDFORWARD_PARAMETERS = Check(
    reference=reference.feedforward_parameters,
    points=2,
    cases=parameter_cases,
    misconceptions=[
        Misconception(
            "the gate's matrix is not counted",
            parameters_two,
            "Name the matrices of a SwiGLU layer. How many are there?",
        ),
        Misconception(
            "a layer without a gate is counted with one",
            parameters_always_three,
            "What does your function do when it is called with gated=False?",
        ),
        Misconception(
            "the biases of the ordinary layer are not counted",
            parameters_without_biases,
            "gelu_feedforward takes four tensors besides x. How many numbers are in each?",
        ),
        Misconception(
            "the gated layer is counted with biases",
            parameters_all_biases,
            "Which tensors does your swiglu take? Is any of them a bias?",
        ),
        Misconception(
            "both biases are taken to have F numbers",
            parameters_hidden_biases,
            "bias_out is added to the output. How many features has that?",
        ),
        Misconception(
            "the two kinds are mixed up",
            parameters_turned,
            "Which of them has three matrices: the one with the gate, or the one without?",
        ),
        Misconception(
            "the gate is taken to read the hidden vector, not x",
            parameters_square_gate,
            "What does gate_proj read: a vector of D numbers, or of F?",
        ),
        Misconception(
            "the numbers that flow are counted, not the parameters",
            parameters_features,
            "A matrix from 2 to 3 features: how many numbers does it hold?",
        ),
    ],
    variants=[parameters_closed_form, parameters_by_shape, parameters_of_layers],
)


# Questions ---------------------------------------------------------------------------------------

IS_ONE_MATRIX = Question(
    "is_one_matrix",
    answer="a",
    choices=("a", "b", "c", "d"),
    misconceptions=[
        Misconception(
            "a product of two branches is thought to be linear",
            "b",
            "Double x. Both branches double. What happens to their product?",
        ),
        Misconception(
            "SiLU is thought to change nothing that matters",
            "c",
            "silu(1) + silu(-1) is not 0. Could a matrix do that?",
        ),
        Misconception(
            "the corner of ReLU is thought to be no bend",
            "d",
            "ReLU(1) + ReLU(-1) is 1. What would a linear function give?",
        ),
    ],
)

META_LETTERS = Question(
    "meta_letters",
    answer="c",
    choices=("a", "b", "c", "d"),
    misconceptions=[
        Misconception(
            "the numbers are read in the order of the computation",
            "a",
            "Which of w1, w2, w3 has D rows in the shapes given? What does it do?",
        ),
        Misconception(
            "gate and up are swapped",
            "b",
            "In W₂(SiLU(W₁x) ⊙ W₃x), which matrix stands inside SiLU?",
        ),
        Misconception(
            "down is taken for the gate",
            "d",
            "Which of the three matrices reads the product of the other two branches?",
        ),
    ],
)

SHARE = 30 * 3 * 576 * 1536 / 134_515_008

FEEDFORWARD_SHARE = Question(
    "feedforward_share",
    answer=SHARE,
    tolerance=(0.0, 0.002),
    misconceptions=[
        Misconception(
            "two matrices a layer are counted",
            SHARE * 2 / 3,
            "Name the matrices of a SwiGLU layer. How many are there?",
        ),
        Misconception(
            "one layer is counted",
            SHARE / 30,
            "How many of these layers does the model have, one above the other?",
        ),
        Misconception(
            "the hidden vector is taken to be 4 · 576 wide",
            SHARE * 1.5,
            "How wide is the hidden vector of SmolLM2: four times 576, or as the text says?",
        ),
        Misconception(
            "the share is given in percent",
            SHARE * 100,
            "The question asks for a number between 0 and 1. Is yours?",
        ),
        Misconception(
            "the parameters are given, not their share",
            SHARE * 134_515_008,
            "A share of what? Which number do you divide by?",
        ),
    ],
)

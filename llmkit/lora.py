"""LoRA: fine-tuning by a small addition to frozen weights (Hu et al., 2022).

A matrix W (out, in) stays as it is; beside it stands a product of two thin ones, B (out, r) and
A (r, in), and only those learn: y = W x + α/r · B A x. Files are those of the `peft` library.
"""

import json
import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")  # of a Llama, its head aside

_PREFIX = "base_model.model."  # what peft writes before every name
_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"


def merge_lora(weight: Tensor, lora_A: Tensor, lora_B: Tensor, alpha: float) -> Tensor:
    """The one matrix that does what base and adapter do together: W + α/r · B A.

    Computed in the adapter's dtype, given back in the base's.

    Shapes: (out, in), (r, in), (out, r) -> (out, in).
    """
    update = (alpha / lora_A.shape[0]) * (lora_B @ lora_A)
    return (weight.to(update.dtype) + update).to(weight.dtype)


class LoRALinear(nn.Module):
    """A frozen linear layer and its low-rank adapter: y = base(x) + α/r · B A x.

    A is drawn, U(±1/√in), and B is 0, so that it starts as the base exactly, while B's gradient is
    not 0. The adapter is float32 or wider: small steps would be lost in bfloat16.

    Shapes: (..., in) -> (..., out). Raises ValueError unless r ≥ 1 and α > 0.
    """

    def __init__(
        self,
        base: nn.Linear,
        r: int = 8,
        alpha: float = 16.0,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        _check_rank(r, alpha)
        self.r, self.alpha = r, alpha
        self.base_layer = base.requires_grad_(False)
        weight = base.weight
        like = {
            "bias": False,
            "device": weight.device,
            "dtype": torch.promote_types(weight.dtype, torch.float32),
        }
        self.lora_A = nn.utils.skip_init(nn.Linear, base.in_features, r, **like)
        self.lora_B = nn.utils.skip_init(nn.Linear, r, base.out_features, **like)
        nn.init.zeros_(self.lora_B.weight)
        with torch.no_grad():  # drawn on the CPU: the same on every device
            bound = 1 / math.sqrt(base.in_features)
            drawn = torch.rand(r, base.in_features, generator=generator)
            self.lora_A.weight.copy_((2 * drawn - 1) * bound)

    def forward(self, x: Tensor) -> Tensor:
        y = self.base_layer(x)
        update = self.lora_B(self.lora_A(x.to(self.lora_A.weight.dtype)))
        return y + (self.alpha / self.r * update).to(y.dtype)

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """The base layer, its weight now the merged one."""
        weight = self.base_layer.weight
        weight.copy_(merge_lora(weight, self.lora_A.weight, self.lora_B.weight, self.alpha))
        return self.base_layer


def trainable_parameters(
    shapes: Mapping[str, tuple[int, ...]], targets: Collection[str], r: int
) -> int:
    """How many numbers LoRA learns: r · (in + out) for each matrix (out, in) that it adapts.

    `shapes` gives each parameter's shape by its name, as "layers.0.self_attn.q_proj.weight"; a
    matrix is adapted if the name of its layer ("q_proj") is among the targets.
    """
    adapted = {(target, "weight") for target in targets}
    return sum(
        r * sum(shape) for name, shape in shapes.items() if tuple(name.split(".")[-2:]) in adapted
    )


def add_lora(
    model: nn.Module,
    targets: Collection[str] = ATTENTION,
    r: int = 8,
    alpha: float = 16.0,
    seed: int = 0,
) -> None:
    """Freeze a model and give an adapter to every linear layer named in `targets`.

    A target is the last part of a layer's name: "q_proj" stands for that of every block. From then
    on the adapters alone require gradients. The same seed draws the same adapters.

    Raises ValueError, with the model as it was, if a target names no linear layer, or one that
    shares its weight with another (a tied head), or if there are adapters already.
    """
    kinds = {name: name.split(".")[-1] for name in _linear_layers(model)}
    if not targets or not set(targets) <= set(kinds.values()):
        raise ValueError(
            f"targets must name some of the linear layers, {', '.join(sorted({*kinds.values()}))}, "
            f"not {', '.join(targets) or 'none'}."
        )
    _adapt(model, [name for name in kinds if kinds[name] in targets], r, alpha, seed)


def _linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    if adapters(model):
        raise ValueError("The model has adapters already: call fold_lora before adding others.")
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}


def _adapt(model: nn.Module, names: Iterable[str], r: int, alpha: float, seed: int = 0) -> None:
    """Put adapters at exactly these layers, or none."""
    _check_rank(r, alpha)
    owners: dict[Tensor, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(parameter, []).append(name)
    for name in names:
        both = owners[model.get_submodule(name).weight]
        if len(both) > 1:
            raise ValueError(
                f"{name} cannot have an adapter: its weight is also {both[0]}, "
                "which a merge would change too."
            )
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name in sorted(names):
        model.set_submodule(name, LoRALinear(model.get_submodule(name), r, alpha, generator))


def adapters(model: nn.Module) -> dict[str, LoRALinear]:
    """The model's adapted layers by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}


def fold_lora(model: nn.Module) -> None:
    """Merge every adapter into its layer: the same logits, and again the model's own class.

    Raises ValueError if there is no adapter.
    """
    for name, layer in _some_adapters(model).items():
        model.set_submodule(name, layer.merge())


def save_lora(model: nn.Module, directory: str | Path) -> None:
    """Write the adapters alone to a directory, as peft's adapter_model.safetensors and config.

    Raises ValueError if there is no adapter.
    """
    layers = _some_adapters(model)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(_tensors(layers), directory / _WEIGHTS)
    first = next(iter(layers.values()))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": first.r,
        "lora_alpha": first.alpha,
        "target_modules": sorted({name.split(".")[-1] for name in layers}),
        "bias": "none",
        "base_model_name_or_path": None,
    }
    (directory / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_lora(model: nn.Module, directory: str | Path) -> None:
    """Put saved adapters into the model that they were trained on, or another of its shape.

    Raises FileNotFoundError, or ValueError for adapters that are damaged, of a kind not
    implemented, or of another model; the model is then as it was.
    """
    directory = Path(directory)
    for name in (_WEIGHTS, _CONFIG):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory} holds no {name}.")
    try:
        config = json.loads((directory / _CONFIG).read_text(encoding="utf-8"))
        saved = load_file(directory / _WEIGHTS)
        r, alpha = config["r"], config["lora_alpha"]
    except (ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise ValueError(f"{directory} holds no adapters that can be read: {error!r}.") from error
    _check_rank(r, alpha)
    for option in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save"):
        if config.get(option):
            raise ValueError(f"{directory} was made with {option}, which is not implemented.")
    names = {key.removeprefix(_PREFIX).rsplit(".lora_", 1)[0] for key in saved}
    layers, expected = _linear_layers(model), {}
    for name in names:
        if (base := layers.get(name)) is None:
            raise ValueError(f"{directory} adapts {name}, which is no linear layer of this model.")
        expected[f"{_PREFIX}{name}.lora_A.weight"] = (r, base.in_features)
        expected[f"{_PREFIX}{name}.lora_B.weight"] = (base.out_features, r)
    for key in sorted(expected.keys() | saved.keys()):
        found = tuple(saved[key].shape) if key in saved else "missing"
        if found != expected.get(key):
            raise ValueError(
                f"{directory} belongs to another model: {key} is {found}, "
                f"but should be {expected.get(key, 'missing')}."
            )
    _adapt(model, names, r, alpha)
    with torch.no_grad():
        for key, weight in _tensors(adapters(model)).items():
            weight.copy_(saved[key])


def _tensors(layers: Mapping[str, LoRALinear]) -> dict[str, Tensor]:
    return {
        f"{_PREFIX}{name}.{part}.weight": getattr(layer, part).weight
        for name, layer in layers.items()
        for part in ("lora_A", "lora_B")
    }


def _some_adapters(model: nn.Module) -> dict[str, LoRALinear]:
    if not (layers := adapters(model)):
        raise ValueError("The model has no adapters: call add_lora first.")
    return layers


def _check_rank(r: int, alpha: float) -> None:
    if not (isinstance(r, int) and r >= 1 and 0 < alpha < math.inf):
        raise ValueError(f"r must be a whole number from 1 and alpha above 0, not {r} and {alpha}.")

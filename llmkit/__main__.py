"""python -m llmkit generate "What is the capital of France?" """

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

# nothing heavy is imported up here: help and bad arguments answer at once

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)


@app.callback()
def main() -> None:
    """Run the language models of llmkit."""


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to ask, or with --raw, to continue.")],
    model: Annotated[
        str, typer.Option(help="smollm2, a .gguf file or a Hugging Face directory.")
    ] = "smollm2",
    system: Annotated[str | None, typer.Option(help="System prompt, for the template's.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Use no chat template.")] = False,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to generate.")] = 256,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 is greedy; 1 is the model's own distribution.")
    ] = 0.0,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Sample from the k likeliest tokens.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample from the likeliest tokens of mass p.")
    ] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Sample from tokens at least p times the likeliest's odds.")
    ] = None,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1, what was said already becomes less likely.")
    ] = 1.0,
    beams: Annotated[
        int, typer.Option(min=1, help="Search for the likeliest answer with so many beams.")
    ] = 1,
    lookup: Annotated[
        bool, typer.Option("--lookup", help="Guess ahead from the prompt: the same, often faster.")
    ] = False,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this text; may be given again.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the sampling.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, float16, or int8: the fastest on a CPU.")
    ] = "float32",
) -> None:
    """Stream a model's answer. Tokens per second go to stderr."""
    if model != "smollm2" and not Path(model).exists():
        raise typer.BadParameter(f"there is no file or directory {model!r}.", param_hint="--model")
    if not prompt:
        raise typer.BadParameter("the prompt is empty.", param_hint="PROMPT")
    if raw and system is not None:
        raise typer.BadParameter("--raw has no place for a system prompt.", param_hint="--system")
    if beams > 1 and (lookup or temperature or top_k or top_p or min_p or repetition_penalty != 1):
        raise typer.BadParameter(
            "a search takes neither sampling options nor --lookup.", param_hint="--beams"
        )

    import torch

    from llmkit import decoding, sampling
    from llmkit.device import parse_device, parse_dtype

    place = _checked("--device", parse_device, device)
    quantized = dtype == "int8"
    number_format = _checked("--dtype", parse_dtype, "float32" if quantized else dtype)
    filters = {
        "temperature": temperature,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
    }
    for name, value in filters.items():
        option, one = "--" + name.replace("_", "-"), torch.zeros(1)
        _checked(option, sampling.warp, one, one.long(), **{name: value})
    stop = stop or []
    _checked("--stop", decoding.stop_at, [], stop)

    from llmkit.assets import AssetError
    from llmkit.checkpoints import load_checkpoint
    from llmkit.quantization import quantize_model

    try:
        llama, tokenizer = load_checkpoint(model, place, number_format)
        if quantized:
            quantize_model(llama, compiled=True)
        messages = [{"role": "system", "content": system}] if system is not None else []
        messages += [{"role": "user", "content": prompt}]
        text = prompt if raw else tokenizer.apply_chat_template(messages)
        tokens = decoding.generate(
            llama,
            tokenizer.encode(text, add_special_tokens=raw),
            max_tokens,
            top_k=top_k,
            **filters,
            stop_ids=tokenizer.stop_ids,
            generator=torch.Generator(place).manual_seed(seed),
            num_beams=beams,
            prompt_lookup=lookup,
        )
    except (ValueError, OSError, AssetError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from None

    times = [time.perf_counter()]

    def timed() -> Iterator[int]:
        for token in tokens:
            times.append(time.perf_counter())
            yield token

    interrupted = False
    try:
        for piece in decoding.stop_at(tokenizer.decode_stream(timed()), stop):
            typer.echo(piece, nl=False)
    except KeyboardInterrupt:
        interrupted = True
    typer.echo()
    typer.echo(_speed(times), err=True)
    if interrupted:
        raise typer.Exit(130)


def _checked(option: str, function: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    try:
        return function(*arguments, **settings)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def _speed(times: list[float]) -> str:
    """`times` are those of the start and of each token."""
    count = len(times) - 1
    line = f"{count} token{'s' * (count != 1)}"
    if count > 0:
        line += f", the first after {times[1] - times[0]:.2f} s"
    if count > 1:
        line += f", then {(count - 1) / (times[-1] - times[1]):.1f} tokens per second"
    return line


if __name__ == "__main__":
    app(prog_name="python -m llmkit")

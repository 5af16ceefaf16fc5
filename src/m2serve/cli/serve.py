"""`m2 serve`: a checkpoint behind an OpenAI-compatible API."""

from __future__ import annotations

import json
import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from m2serve.engine.config import CpuActivation, Device, DType, KVCacheDType
from m2serve.errors import UsageError
from m2serve.spec.shape import ModelShape, load_config, load_json_object
from m2serve.spec.units import GIB

if TYPE_CHECKING:
    from m2serve.engine.request import EngineInfo
    from m2serve.server.config import DefaultSampling, ServerConfig

EngineKind = Literal["auto", "own", "vllm", "sglang", "vllm-ascend"]
WeightFormat = Literal["bf16", "fp8", "int8"]
ReasoningParser = Literal["minimax_m2", "minimax_m2_append_think"]
Hub = Literal["auto", "huggingface", "modelscope"]


def serve(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(help="Checkpoint folder, or a hub id. Default: the built-in miniature."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(
            help="Name clients use; repeat for more. Default: MODEL as given, m2-miniature without."
        ),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(envvar="M2_API_KEY", help="Key clients must send; repeat for more."),
    ] = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = "auto",
    dtype: Annotated[
        DType,
        typer.Option(
            help="What PyTorch computes in; auto: bfloat16 where it is fast. The native CPU "
            "kernels sum in float32 and keep BF16 weights whatever it is; from it they take how "
            "activations and the KV cache are rounded unless their own options say so."
        ),
    ] = "auto",
    max_model_len: Annotated[
        int, typer.Option(min=0, help="Context in tokens; 0: the checkpoint's, if it fits.")
    ] = 0,
    max_num_seqs: Annotated[int, typer.Option(min=1, help="Sequences computed together.")] = 64,
    max_num_batched_tokens: Annotated[
        int,
        typer.Option(
            min=0,
            help="Tokens of one step; long prompts are cut into such chunks. 0: 1,024 on a CPU, "
            "2,048 on a GPU.",
        ),
    ] = 0,
    enable_prefix_caching: Annotated[
        bool, typer.Option(help="Reuse the KV cache of common prefixes.")
    ] = True,
    kv_cache_memory_bytes: Annotated[
        int, typer.Option(min=0, help="Memory of the KV cache; 0: chosen from what is free.")
    ] = 0,
    kv_cache_dtype: Annotated[
        KVCacheDType,
        typer.Option(help="Of the KV cache; auto: bfloat16, or --dtype. int8, fp8: on a CPU."),
    ] = "auto",
    reasoning_parser: Annotated[
        ReasoningParser,
        typer.Option(help="Split reasoning from content, or keep <think> inside content."),
    ] = "minimax_m2",
    allow_unknown_tools: Annotated[
        bool, typer.Option(help="Pass on calls of tools the request did not offer.")
    ] = False,
    scripted: Annotated[
        Path | None, typer.Option(help="JSON lines of forced answers, for tests.")
    ] = None,
    num_threads: Annotated[
        int, typer.Option(min=0, help="0: OMP_NUM_THREADS, else one a physical core.")
    ] = 0,
    attention_format: Annotated[
        WeightFormat | None,
        typer.Option(help="Requantise BF16 q, k, v and o while loading. Default: as stored."),
    ] = None,
    head_format: Annotated[
        WeightFormat | None, typer.Option(help="The same for the output head.")
    ] = None,
    cpu_activation: Annotated[
        CpuActivation,
        typer.Option(
            help="To what the CPU kernels round; int8: faster with NVFP4, MXFP4, INT4 and INT8."
        ),
    ] = "auto",
    max_num_queued_reqs: Annotated[
        int, typer.Option(min=0, help="Waiting requests before 503; 0: no limit.")
    ] = 1024,
    shutdown_timeout: Annotated[
        float, typer.Option(min=0, help="Seconds running answers get after SIGTERM.")
    ] = 30.0,
    revision: Annotated[str | None, typer.Option(help="Commit or branch of a hub id.")] = None,
    hub: Annotated[Hub, typer.Option(help="Where a hub id is looked up.")] = "auto",
    engine: Annotated[
        EngineKind,
        typer.Option(help="What computes; others than own are started. auto: what suits here."),
    ] = "auto",
    engine_command: Annotated[
        str, typer.Option(help="The engine's program, when it is not on the path.")
    ] = "",
    engine_args: Annotated[
        str, typer.Option(help="More options for the engine, as one string.")
    ] = "",
    upstream: Annotated[
        list[str] | None,
        typer.Option(help="URL of a running vLLM, SGLang or m2 serve; repeat for more."),
    ] = None,
    upstream_api_key: Annotated[
        str | None, typer.Option(envvar="M2_UPSTREAM_API_KEY", help="Key the upstream asks for.")
    ] = None,
    restart_upstream: Annotated[
        bool, typer.Option("--restart-upstream", help="Start the engine again when it dies.")
    ] = False,
) -> None:
    """Serve a checkpoint."""
    # The server's libraries take half a second to import, which the other commands should not pay.
    from m2serve.chat.identity import model_identity
    from m2serve.chat.tokenizer import Tokenizer
    from m2serve.checkpoint.hub import MINIATURE_NAME, miniature_folder, resolve
    from m2serve.cli.engines import EngineChoice, given_options, make_engine
    from m2serve.cli.loading import show_loading
    from m2serve.engine.config import EngineConfig
    from m2serve.server.config import ServerConfig
    from m2serve.server.run import run_server

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    folder = (
        miniature_folder() if model is None else resolve(model, revision, hub, weights=not upstream)
    )
    shape = ModelShape.from_config(load_config(folder))
    tokenizer = Tokenizer.load(folder)
    if tokenizer.used_vocab_size > shape.vocab_size:
        raise UsageError(
            f"tokenizer.json of {folder} has ids up to {tokenizer.used_vocab_size - 1}, but "
            f"vocab_size is {shape.vocab_size} in config.json; they belong to different models"
        )
    client = make_engine(
        EngineChoice(
            kind=engine,
            upstream=tuple(upstream or ()),
            upstream_api_key=upstream_api_key,
            command=_words(engine_command, "--engine-command"),
            arguments=_words(engine_args, "--engine-args"),
            restart=restart_upstream,
            scripted=scripted,
            given=given_options(context),
        ),
        EngineConfig(
            model_path=str(folder),
            device=device,
            dtype=dtype,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            enable_prefix_caching=enable_prefix_caching,
            kv_cache_memory_bytes=kv_cache_memory_bytes,
            kv_cache_dtype=kv_cache_dtype,
            used_vocab_size=tokenizer.used_vocab_size,
            num_threads=num_threads,
            attention_format=attention_format or "",
            cpu_activation=cpu_activation,
            head_format=head_format or "",
        ),
        shape,
        tokenizer,
    )
    config = ServerConfig(
        served_model_names=tuple(served_model_name or [model or MINIATURE_NAME]),
        host=host,
        port=port,
        api_keys=tuple(api_key or ()),
        reasoning_parser=reasoning_parser,
        allow_unknown_tools=allow_unknown_tools,
        model_identity=model_identity(folder),
        default_sampling=_default_sampling(folder),
        max_num_queued_reqs=max_num_queued_reqs,
        shutdown_timeout_s=shutdown_timeout,
    )
    with show_loading(client):
        run_server(config, client, tokenizer, lambda info: _announce(config, info))


def _default_sampling(folder: Path) -> DefaultSampling:
    from m2serve.server.config import DefaultSampling

    path = folder / "generation_config.json"
    return DefaultSampling.from_generation_config(load_json_object(path) if path.is_file() else {})


def _announce(config: ServerConfig, info: EngineInfo) -> None:
    """What a person needs to know once the first token has been generated."""
    sampling = config.default_sampling
    body = {
        "model": config.model_name,
        "messages": [{"role": "user", "content": "Hello, who are you?"}],
        "max_tokens": 200,
    }
    key = " -H 'Authorization: Bearer YOUR_KEY'" if config.api_keys else ""
    address = f"http://{config.host}:{config.port}"
    num_tokens = info.num_kv_blocks * info.kv_block_size
    cache = f", KV cache {num_tokens:,} tokens" if num_tokens else ""
    saved = info.weight_bytes_saved
    less = f" ({saved / GIB:.2f} less by requantising)" if saved else ""
    weights = f", weights {info.weight_bytes / GIB:.2f} GiB{less}" if info.weight_bytes else ""
    precision = f" ({info.precision})" if info.precision else ""
    lines = [
        f"{config.model_name} is ready at {address} after {info.load_time_s:.1f} s: {info.device}, "
        f"{info.dtype}{precision}, context {info.max_model_len:,}{cache}{weights}",
        f"Default sampling: temperature {sampling.temperature}, top_p {sampling.top_p}, "
        f"top_k {sampling.top_k} (a request may say otherwise)",
    ]
    if config.host not in ("127.0.0.1", "localhost", "::1") and not config.api_keys:
        lines.append("Anyone who reaches this address can use it; --api-key asks for a key.")
    lines += [
        "Try:",
        f"  curl {address}/v1/chat/completions -H 'Content-Type: application/json'{key} "
        f"-d {shlex.quote(json.dumps(body))}",
    ]
    print("\n".join(lines), flush=True)


def _words(text: str, option: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"{option} {text!r} cannot be split into words: {error}") from error

"""The bodies clients send, as pydantic models: types only, from which the OpenAPI page is written.

Ranges are checked once, by the engine's own `check_request`; fields with their own grammar (prompt,
messages, tools) are read by the code that uses them. Fields that no model here names go through
`protocol_ignored.refuse_unknown`.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

JsonObject = dict[str, Any]


class RequestModel(BaseModel):
    """Strict: "12" is not a number, 1 is not a boolean.

    Lists stop at their first wrong item, so a small body cannot become a large error.
    """

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())

    @property
    def unknown_fields(self) -> dict[str, Any]:
        return self.model_extra or {}


class StreamOptions(RequestModel):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationFields(RequestModel):
    """What chat and plain completions share; null always means: the server's default."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: Any = Field(None, description="A string, or a list of strings.")
    stop_token_ids: list[int] | None = Field(None, fail_fast=True)
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    bad_words: list[str] | None = Field(None, fail_fast=True)
    allowed_token_ids: list[int] | None = Field(None, fail_fast=True)
    logit_bias: Any = Field(None, description="Token id to bias, -100 to 100.")
    prompt_logprobs: int | None = None
    skip_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    cache_salt: str | None = Field(None, min_length=1, max_length=1024)
    request_id: str | None = Field(None, pattern=r"^[A-Za-z0-9_.:-]{1,128}$")
    response_format: JsonObject | None = Field(
        None, description="Of type text, json_object or json_schema."
    )
    structured_outputs: JsonObject | None = Field(
        None, description="One of json, json_object, regex, choice, grammar; as in vLLM."
    )
    guided_json: Any = Field(None, description="A JSON schema, or its text.")
    guided_regex: str | None = None
    guided_choice: list[str] | None = Field(None, fail_fast=True)
    guided_grammar: str | None = None


class ChatFields(RequestModel):
    """What makes a prompt out of messages; shared with /tokenize."""

    messages: list[Any] = Field(description="OpenAI-style messages; text only.")
    tools: list[Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: JsonObject | None = None


class ChatCompletionRequest(GenerationFields, ChatFields):
    max_completion_tokens: int | None = None
    tool_choice: Any = Field(
        None, description='"auto", "none", "required", or a function that has to be called.'
    )
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    include_reasoning: bool | None = None
    reasoning_split: bool | None = None


class CompletionRequest(GenerationFields):
    prompt: Any = Field(
        None, description="A string, a list of token ids, or a list of either of them."
    )
    echo: bool | None = None
    logprobs: int | None = None
    return_tokens_as_token_ids: bool | None = None


class TokenizeRequest(RequestModel):
    """`prompt`, or `messages` with what belongs to them."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Any] | None = None
    tools: list[Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: JsonObject | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(RequestModel):
    model: str | None = None
    tokens: list[int] = Field(fail_fast=True)

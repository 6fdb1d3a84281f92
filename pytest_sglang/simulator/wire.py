"""Bodies of requests and answers of 0.5.11: OpenAI's two forms and SGLang's own, streamed and whole, and their errors."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pytest_sglang.simulator import tokens
from pytest_sglang.simulator.answers import Scored
from pytest_sglang.simulator.engine import Request
from pytest_sglang.simulator.startup import CONTEXT

Kind = Literal["chat", "completions", "generate"]
_DEFAULT_TOKENS = {"completions": 16, "generate": 128}


class Refused(Exception):
    """A request that is answered 400."""

    def __init__(self, message: str, error_type: str = "BadRequestError") -> None:
        super().__init__(message)
        self.error_type = error_type


@dataclass(frozen=True)
class Asked:
    """A request as it was asked for."""

    kind: Kind
    request: Request
    model: str
    stream: bool = False
    usage: bool = False
    continuous_usage: bool = False
    top_logprobs: int = 0
    words: bool = False
    """The text of each scored token is told."""


def dumps(value: object) -> str:
    """JSON as SGLang writes it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def parse(kind: Kind, body: bytes, default_model: str) -> Asked:
    """The request in ``body``. Raises Refused with the message that SGLang gives."""
    try:
        raw = json.loads(body)
    except ValueError as error:
        text = getattr(error, "msg", "invalid JSON")
        detail = f"'msg': 'JSON decode error', 'input': {{}}, 'ctx': {{'error': '{text}'}}"
        raise Refused(f"[{{'type': 'json_invalid', 'loc': ('body', 1), {detail}}}]", "Bad Request") from None
    if not isinstance(raw, dict):
        detail = f"'msg': 'Input should be a valid dictionary', 'input': {raw!r}"
        raise Refused(f"[{{'type': 'model_attributes_type', 'loc': ('body',), {detail}}}]", "Bad Request")
    prompt = _prompt(kind, raw)
    sampling = raw.get("sampling_params") or {} if kind == "generate" else raw
    wanted = _wanted(kind, sampling, prompt)
    options = raw.get("stream_options") or {}
    request = Request(prompt=prompt, max_tokens=wanted, ignore_eos=bool(sampling.get("ignore_eos")))
    if kind == "generate" and raw.get("return_logprob"):
        start = raw.get("logprob_start_len", -1)
        request.scores_from = start if isinstance(start, int) and 0 <= start < len(prompt) else len(prompt)
    if isinstance(raw.get("rid"), str):
        request.rid = raw["rid"]
    return Asked(
        kind=kind,
        request=request,
        model=str(raw.get("model", default_model)),
        stream=bool(raw.get("stream")),
        usage=bool(options.get("include_usage")),
        continuous_usage=bool(options.get("continuous_usage_stats")),
        top_logprobs=max(0, int(raw.get("top_logprobs_num") or 0)) if kind == "generate" else 0,
        words=bool(raw.get("return_text_in_logprobs")),
    )


def _prompt(kind: Kind, raw: dict[str, Any]) -> list[int]:
    if kind == "generate":
        if raw.get("input_ids") is None and raw.get("text") is None:
            raise Refused("Either text, input_ids or input_embeds should be provided.")
        return _ids(raw["input_ids"] if raw.get("input_ids") is not None else raw["text"])
    name = "messages" if kind == "chat" else "prompt"
    if raw.get(name) is None:
        raise Refused(
            f"[{{'type': 'missing', 'loc': ('body', '{name}'), 'msg': 'Field required', 'input': {raw!r}}}]", "Bad Request"
        )
    if kind == "completions":
        return _ids(raw["prompt"])
    contents = [str(message.get("content") or "") for message in raw["messages"] if isinstance(message, dict)]
    # the chat template adds a begin and a turn token
    return [tokens.BOS, *tokens.encode("\n".join(contents)), tokens.BOS]


def _ids(prompt: object) -> list[int]:
    if isinstance(prompt, str):
        return tokens.encode(prompt)
    if isinstance(prompt, list) and all(isinstance(each, int) for each in prompt):
        return prompt
    raise Refused("The simulated server takes one prompt a request: a text or a list of token ids.")


def _wanted(kind: Kind, sampling: dict[str, Any], prompt: Sequence[int]) -> int:
    names = {"chat": ("max_completion_tokens", "max_tokens"), "completions": ("max_tokens",), "generate": ("max_new_tokens",)}[kind]
    wanted = next((sampling[name] for name in names if sampling.get(name) is not None), None)
    room = CONTEXT - len(prompt) - 2
    if len(prompt) >= CONTEXT:
        raise Refused(f"The input ({len(prompt)} tokens) is longer than the model's context length ({CONTEXT} tokens).")
    if wanted is None:
        return min(room, _DEFAULT_TOKENS.get(kind, room))
    if not isinstance(wanted, int) or isinstance(wanted, bool):
        raise Refused(
            f"[{{'type': 'int_type', 'loc': ('body', '{names[0]}'), 'msg': 'Input should be a valid integer'}}]", "Bad Request"
        )
    if wanted < 0:
        raise Refused(f"max_new_tokens must be at least 0, got {wanted}.")
    if len(prompt) + wanted > CONTEXT:
        raise Refused(
            f"Requested token count exceeds the model's maximum context length of {CONTEXT} tokens. You requested a total of "
            f"{len(prompt) + wanted} tokens: {len(prompt)} tokens from the input messages and {wanted} tokens for the completion. "
            "Please reduce the number of tokens in the input messages or the completion to fit within the limit."
        )
    return max(1, wanted)


def error(kind: Kind, refused: Refused) -> dict[str, Any]:
    """Body of a 400."""
    if kind == "generate" and refused.error_type == "BadRequestError":
        return {"error": {"message": str(refused)}}
    return {"object": "error", "message": str(refused), "type": refused.error_type, "param": None, "code": 400}


# --- whole answers -------------------------------------------------------------------------------------------------------------


def whole(asked: Asked) -> dict[str, Any]:
    """The answer of a request that is not streamed."""
    request, text = asked.request, tokens.decode(asked.request.output)
    if asked.kind == "generate":
        return {"text": text, "output_ids": request.output, "meta_info": _meta(asked, final=True)}
    ending = {"logprobs": None, "finish_reason": request.finish_reason, "matched_stop": request.matched_stop}
    if asked.kind == "chat":
        message = {"role": "assistant", "content": text, "reasoning_content": None, "tool_calls": None}
        choice: dict[str, Any] = {"index": 0, "message": message, **ending}
    else:
        choice = {"index": 0, "text": text, **ending}
    return {
        "id": request.rid,
        "object": "chat.completion" if asked.kind == "chat" else "text_completion",
        "created": int(request.received_at),
        "model": asked.model,
        "choices": [choice],
        "usage": _usage(request),
        "metadata": {"weight_version": "default"},
    }


# --- streams -------------------------------------------------------------------------------------------------------------------


def event(value: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {dumps(value)}\n\n"


DONE = "data: [DONE]\n\n"


def chunk(asked: Asked, new: Sequence[int]) -> str:
    """The events for newly made tokens; the request's output holds them already."""
    request, first = asked.request, len(asked.request.output) == len(new)
    if asked.kind == "generate":
        body = {
            "text": tokens.decode(request.output),
            "output_ids": request.output,
            "meta_info": _meta(asked, final=bool(request.finish)),
        }
        return event(body)
    if asked.kind == "completions":
        return event(_piece(asked, {"text": tokens.decode(new)}, last=request.finish is not None))
    delta: dict[str, Any] = {"reasoning_content": None}
    events = event(_piece(asked, {"delta": delta | {"role": "assistant", "content": ""}}, last=False)) if first else ""
    events += event(_piece(asked, {"delta": delta | {"content": tokens.decode(new)}}, last=False))
    return events + (event(_piece(asked, {"delta": delta}, last=True)) if request.finish is not None else "")


def ending(asked: Asked) -> str:
    """What follows the last token: usage, if it was asked for, and the end mark."""
    if asked.kind != "generate" and asked.usage:
        return event(_head(asked) | {"choices": [], "usage": _usage(asked.request)}) + DONE
    return DONE


def _head(asked: Asked) -> dict[str, Any]:
    kind = "chat.completion.chunk" if asked.kind == "chat" else "text_completion"
    return {"id": asked.request.rid, "object": kind, "created": int(asked.request.received_at), "model": asked.model}


def _piece(asked: Asked, content: dict[str, Any], *, last: bool) -> dict[str, Any]:
    request = asked.request
    finish = {"finish_reason": request.finish_reason, "matched_stop": request.matched_stop} if last else {}
    choice = {"index": 0, **content, "logprobs": None, "finish_reason": None, "matched_stop": None} | finish
    piece = _head(asked) | {"choices": [choice]}
    return piece | {"usage": _usage(request)} if asked.continuous_usage else piece


def _usage(request: Request) -> dict[str, Any]:
    prompt, made = len(request.prompt), request.told
    return {
        "prompt_tokens": prompt,
        "total_tokens": prompt + made,
        "completion_tokens": made,
        "prompt_tokens_details": None,
        "reasoning_tokens": 0,
    }


def _meta(asked: Asked, *, final: bool) -> dict[str, Any]:
    request = asked.request
    meta = {
        "id": request.rid,
        "finish_reason": request.finish,
        "prompt_tokens": len(request.prompt),
        "weight_version": "default",
        "total_retractions": 0,
        "queue_time": request.queued_s,
        "prefill_waiting_latency": None,
        "prefill_launch_latency": None,
        **_scores(asked),
        "reasoning_tokens": 0,
        "completion_tokens": request.told,
        "cached_tokens": request.cached,
        "cached_tokens_details": {"device": request.cached, "host": 0} if request.cached else None,
        "dp_rank": None,
    }
    if not final:
        return meta
    elapsed_s = time.monotonic() - request.received_s
    decode_s = (request.last_s or 0.0) - (request.first_s or 0.0)
    return meta | {
        "e2e_latency": elapsed_s,
        "request_received_ts": request.received_at,
        "api_server_dispatch_finish_ts": request.received_at + 0.0002,
        "request_finished_ts": request.received_at + elapsed_s,
        "decode_throughput": (len(request.output) - 1) / decode_s if decode_s > 0 else None,
        "response_sent_to_client_ts": request.received_at + elapsed_s,
    }


def _scores(asked: Asked) -> dict[str, Any]:
    """Log-probabilities as the native route lists them: ``[number, token, text or null]``; the first scored prompt token has none."""
    request, start = asked.request, asked.request.scores_from
    if start is None:
        return {}

    def one(logprob: float | None, token: int) -> list[Any]:
        return [logprob, token, tokens.decode([token]) if asked.words else None]

    def best(scored: Scored) -> list[list[Any]]:
        return [one(logprob, token) for token, logprob in scored.best[: asked.top_logprobs]]

    first = request.prompt[start : start + 1]
    found: dict[str, Any] = {
        "input_token_logprobs": [one(None, each) for each in first]
        + [one(each.logprob, each.token) for each in request.prompt_scores],
        "output_token_logprobs": [one(each.logprob, each.token) for each in request.scores],
        "output_token_logprobs_length": len(request.scores),
    }
    if asked.top_logprobs:
        found["input_top_logprobs"] = [None for _ in first] + [best(each) for each in request.prompt_scores]
        found["output_top_logprobs"] = [best(each) for each in request.scores]
    return found

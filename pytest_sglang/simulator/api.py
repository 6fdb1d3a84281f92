"""The routes of the simulated server, as 0.5.11 has them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from pytest_sglang.simulator import tokens, wire
from pytest_sglang.simulator.engine import Engine, Request
from pytest_sglang.simulator.log import Log
from pytest_sglang.simulator.startup import CONTEXT, KV_TOKENS, MAX_RUNNING

VERSION = "0.5.11"
HEALTH_S = 1.0
"""A health check looks for output once a second: its answer comes at the earliest after this."""
Status = Literal["Starting", "Up", "Draining"]
_OPEN = ("/health", "/health_generate", "/metrics")
_DEPRECATED = {"/get_model_info": "/model_info", "/get_server_info": "/server_info", "/get_load": "/v1/loads"}
_WEIGHT_GB, _KV_GB = 10.3, 7.5


@dataclass
class Serving:
    """What the routes work with."""

    engine: Engine
    log: Log
    args: Mapping[str, Any]
    status: Status = "Starting"

    @property
    def model(self) -> str:
        """Path of the served model."""
        return str(self.args["model_path"])


class Api:
    """Every route; ``application(warm_up)`` is what uvicorn serves."""

    def __init__(self, serving: Serving) -> None:
        self._serving, self._engine = serving, serving.engine

    def application(self, warm_up: Callable[[], Awaitable[None]]) -> Starlette:
        """The ASGI application; ``warm_up`` runs beside it from the moment that it starts."""

        @asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            task = asyncio.ensure_future(warm_up())
            yield
            task.cancel()

        get, post, both = ["GET"], ["POST"], ["GET", "POST"]
        table: list[tuple[str, Callable[[HttpRequest], Awaitable[Response]], list[str]]] = [
            ("/health", self.health, get),
            ("/health_generate", self.health, get),
            ("/v1/models", self.models, get),
            ("/model_info", self.model_info, get),
            ("/get_model_info", self.model_info, get),
            ("/server_info", self.server_info, get),
            ("/get_server_info", self.server_info, get),
            ("/v1/loads", self.loads, get),
            ("/get_load", self.load, get),
            ("/metrics", self.metrics, get),
            ("/flush_cache", self.flush, both),
            ("/abort_request", self.abort, post),
            ("/tokenize", self.tokenize, post),
            ("/detokenize", self.detokenize, post),
            ("/v1/chat/completions", self.chat, post),
            ("/v1/completions", self.completions, post),
            ("/generate", self.generate, [*post, "PUT"]),
        ]
        routes = [Route(path, self._checked(handler), methods=methods) for path, handler, methods in table]
        return Starlette(routes=routes, lifespan=lifespan, exception_handlers={404: _not_found, 405: _not_allowed})

    def _checked(self, handler: Callable[[HttpRequest], Awaitable[Response]]) -> Callable[[HttpRequest], Awaitable[Response]]:
        """The handler behind the key, counted; the old spellings log that they are old."""

        async def checked(request: HttpRequest) -> Response:
            path, key = request.url.path, self._serving.args.get("api_key")
            if key and path not in _OPEN and request.headers.get("authorization") != f"Bearer {key}":
                return _json({"error": "Unauthorized"}, 401)
            if path in _DEPRECATED:
                told = f"Endpoint '{path}' is deprecated and will be removed in a future version."
                self._serving.log.line(f"{told} Please use '{_DEPRECATED[path]}' instead.")
            response = await handler(request)
            self._engine.metrics.responses[path, request.method, response.status_code] += 1
            return response

        return checked

    # --- state of the server -----------------------------------------------------------------------------------------------

    async def health(self, _: HttpRequest) -> Response:
        """503 unless up; else a request of one token, or whatever else the engine produces, within a second."""
        if not self._up():
            return Response(status_code=503)
        begin_s = time.monotonic()
        if not self._engine.running:
            async for _tokens in self._engine.run(Request(prompt=[0], max_tokens=1, ignore_eos=True)):
                pass
        await asyncio.sleep(max(0.0, begin_s + HEALTH_S - time.monotonic()))
        return Response(status_code=200 if self._up() else 503)

    def _up(self) -> bool:
        return self._serving.status == "Up"

    async def models(self, _: HttpRequest) -> Response:
        """Names in memory: answers from the moment the port is open."""
        served = self._serving.args["served_model_name"]
        card = {"id": served, "object": "model", "created": int(time.time()), "owned_by": "sglang", "root": served, "parent": None}
        return _json({"object": "list", "data": [card | {"max_model_len": CONTEXT}]})

    async def model_info(self, _: HttpRequest) -> Response:
        """The model that is served."""
        args = self._serving.args
        return _json(
            {
                "model_path": args["model_path"],
                "tokenizer_path": args["tokenizer_path"],
                "is_generation": True,
                "preferred_sampling_params": None,
                "weight_version": "default",
                "has_image_understanding": False,
                "has_audio_understanding": False,
                "model_type": "llama",
                "architectures": ["LlamaForCausalLM"],
            }
        )

    async def server_info(self, _: HttpRequest) -> Response:
        """Every argument, flat, and the state of the scheduler."""
        args, engine = dict(self._serving.args), self._engine
        memory = {"weight": _WEIGHT_GB, "kvcache": _KV_GB, "token_capacity": KV_TOKENS, "graph": 0.31}
        internal = args | {
            "last_gen_throughput": engine.gen_throughput,
            "memory_usage": memory,
            "effective_max_running_requests_per_dp": MAX_RUNNING,
        }
        tail = {"status": "ready", "max_total_num_tokens": KV_TOKENS, "max_req_input_len": CONTEXT - 6}
        return _json(args | tail | {"internal_states": [internal], "version": VERSION})

    async def loads(self, _: HttpRequest) -> Response:
        """Requests running and waiting."""
        engine = self._engine
        running, waiting, used = len(engine.running), engine.waiting, engine.used_tokens()
        usage, throughput = round(used / KV_TOKENS, 4), round(engine.gen_throughput, 2) if running else 0
        load = {
            "num_running_reqs": running,
            "num_waiting_reqs": waiting,
            "num_used_tokens": used,
            "num_total_tokens": used,
            "max_total_num_tokens": KV_TOKENS,
            "token_usage": usage,
            "gen_throughput": throughput,
            "cache_hit_rate": 0.0,
            "utilization": round(running / MAX_RUNNING, 4),
            "max_running_requests": MAX_RUNNING,
            "memory": {"weight_gb": _WEIGHT_GB, "kv_cache_gb": _KV_GB, "graph_gb": 0.31, "token_capacity": KV_TOKENS},
            "queues": {"waiting": waiting, "grammar": 0, "paused": 0, "retracted": 0},
            "num_total_reqs": running + waiting,
        }
        total = {
            "total_running_reqs": running,
            "total_waiting_reqs": waiting,
            "total_reqs": running + waiting,
            "total_used_tokens": used,
            "total_tokens": used,
            "avg_token_usage": usage,
            "avg_throughput": throughput,
            "avg_utilization": load["utilization"],
        }
        now = datetime.now(UTC).isoformat()
        return _json({"timestamp": now, "version": VERSION, "dp_rank_count": 1, "loads": [load], "aggregate": total})

    async def load(self, _: HttpRequest) -> Response:
        """The older form of loads."""
        engine = self._engine
        running = len(engine.running)
        one = {"dp_rank": None, "num_reqs": running + engine.waiting, "num_waiting_reqs": engine.waiting}
        return _json([one | {"num_tokens": engine.used_tokens(), "num_pending_tokens": 0, "ts_tic": time.monotonic()}])

    async def metrics(self, _: HttpRequest) -> Response:
        """Prometheus text."""
        engine = self._engine
        gauges = {
            "num_running_reqs": len(engine.running),
            "num_queue_reqs": engine.waiting,
            "gen_throughput": engine.gen_throughput,
            "token_usage": engine.used_tokens() / KV_TOKENS,
            "cache_hit_rate": 0.0,
            "num_retracted_reqs": 0,
            "is_cuda_graph": 1,
            "max_total_num_tokens": KV_TOKENS,
        }
        text = engine.metrics.text(str(self._serving.args["served_model_name"]), gauges)
        return PlainTextResponse(text, headers={"content-type": "text/plain; version=0.0.4; charset=utf-8"})

    # --- administration ----------------------------------------------------------------------------------------------------

    async def flush(self, _: HttpRequest) -> Response:
        """Forget cached prefixes; refused while requests run."""
        done = self._engine.flush()
        head = "Cache flushed." if done else "Flush cache failed."
        text = (
            f"{head}\nPlease check backend logs for more details. "
            "(When there are running or waiting requests, the operation will not be performed.)\n"
        )
        return Response(text, status_code=200 if done else 400)

    async def abort(self, request: HttpRequest) -> Response:
        """200 even for an unknown id."""
        raw = await _object(request)
        if raw.get("abort_all") or raw.get("rid"):
            self._engine.abort(None if raw.get("abort_all") else str(raw["rid"]))
        return Response(status_code=200)

    async def tokenize(self, request: HttpRequest) -> Response:
        """Token ids and their number."""
        ids = tokens.encode(str((await _object(request)).get("prompt", "")))
        return _json({"tokens": ids, "count": len(ids), "max_model_len": CONTEXT})

    async def detokenize(self, request: HttpRequest) -> Response:
        """Text of token ids."""
        ids = (await _object(request)).get("tokens", [])
        return _json({"text": tokens.decode(each for each in ids if isinstance(each, int))})

    # --- generation --------------------------------------------------------------------------------------------------------

    async def chat(self, request: HttpRequest) -> Response:
        """OpenAI's chat route."""
        return await self._generation("chat", request)

    async def completions(self, request: HttpRequest) -> Response:
        """OpenAI's completions route."""
        return await self._generation("completions", request)

    async def generate(self, request: HttpRequest) -> Response:
        """SGLang's own route."""
        return await self._generation("generate", request)

    async def _generation(self, kind: wire.Kind, http: HttpRequest) -> Response:
        try:
            asked = wire.parse(kind, await http.body(), self._serving.model)
        except wire.Refused as refused:
            return _json(wire.error(kind, refused), 400)
        if asked.stream:
            return StreamingResponse(self._stream(asked), media_type="text/event-stream")
        async for _ in self._engine.run(asked.request):
            pass
        return _json(wire.whole(asked))

    async def _stream(self, asked: wire.Asked) -> AsyncIterator[str]:
        async for new in self._engine.run(asked.request):
            yield wire.chunk(asked, new)
        yield wire.ending(asked)


def _json(value: object, status: int = 200) -> Response:
    return Response(wire.dumps(value), status_code=status, media_type="application/json")


async def _object(request: HttpRequest) -> dict[str, Any]:
    try:
        raw = json.loads(await request.body() or b"{}")
    except ValueError:
        return {}
    return raw if isinstance(raw, dict) else {}


async def _not_found(_: HttpRequest, __: Exception) -> Response:
    return _json({"detail": "Not Found"}, 404)


async def _not_allowed(_: HttpRequest, __: Exception) -> Response:
    return _json({"detail": "Method Not Allowed"}, 405)

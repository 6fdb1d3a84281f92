"""One request by the client of SGLang's own bench_serving, run by the engine's Python: URL TOKENS.

Says "ready" when everything is imported, sends at the first line on standard input, prints its times as JSON: ``first_s`` and
``last_s`` on CLOCK_MONOTONIC, and the tokens that came after the first chunk.
"""

import asyncio
import json
import sys
import types

# bench_serving imports it for data sets that nobody asks for here; it is not installed
datasets = types.ModuleType("datasets")
datasets.load_dataset = None
sys.modules["datasets"] = datasets

from sglang.benchmark import serving  # noqa: E402

serving.set_global_args(
    types.SimpleNamespace(
        temperature=0.0,
        top_p=1.0,
        disable_ignore_eos=False,
        disable_stream=False,
        return_logprob=False,
        return_routed_experts=False,
        logprob_start_len=-1,
        top_logprobs_num=0,
        token_ids_logprob=None,
        header=None,
    )
)
asked = serving.RequestFuncInput(
    prompt="import asyncio\n",
    api_url=sys.argv[1] + "/generate",
    prompt_len=4,
    output_len=int(sys.argv[2]),
    model="any",
    lora_name=None,
    image_data=None,
    extra_request_body={},
)
print("ready", flush=True)
sys.stdin.readline()
found = asyncio.run(serving.async_request_sglang_generate(asked))
first_s = found.start_time + found.ttft
print(
    json.dumps(
        {
            "success": found.success,
            "error": found.error,
            "tokens": found.output_len,
            "first_s": first_s,
            "last_s": first_s + sum(found.itl),
            "after_first": len(found.itl),
        }
    ),
    flush=True,
)

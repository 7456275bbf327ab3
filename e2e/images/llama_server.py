"""llama.cpp's OpenAI-compatible server with the flags of `llama-server`, as far as Spillway's preset LlamaCpp uses them."""

import argparse
import signal
import threading

import xllamacpp

flags = argparse.ArgumentParser(prog="llama-server", allow_abbrev=False)
flags.add_argument("--model", required=True)
flags.add_argument("--alias", required=True)
flags.add_argument("--host", default="127.0.0.1")
flags.add_argument("--port", type=int, default=8080)
flags.add_argument("--ctx-size", type=int, default=0)
flags.add_argument("--parallel", type=int, default=1)
flags.add_argument("--metrics", action="store_true")
flags.add_argument("--embeddings", action="store_true")
flags.add_argument("--api-key")
flags.add_argument("--pooling", choices=["mean", "cls", "last"])
asked = flags.parse_args()

params = xllamacpp.CommonParams()
params.model.path = asked.model
params.model_alias = {asked.alias}
params.hostnames = [asked.host]
params.port = asked.port
params.n_ctx = asked.ctx_size
params.n_parallel = asked.parallel
params.endpoint_metrics = asked.metrics
params.embedding = asked.embeddings
if asked.api_key:
    params.api_keys = [asked.api_key]
if asked.pooling:
    params.pooling_type = getattr(xllamacpp.llama_pooling_type, f"LLAMA_POOLING_TYPE_{asked.pooling.upper()}")

ended = threading.Event()
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: ended.set())
server = xllamacpp.Server(params)
print(f"serving {asked.alias} on {asked.host}:{asked.port}", flush=True)
ended.wait()

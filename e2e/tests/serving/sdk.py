"""The official client, unmodified, against a gateway: what it must be able to do, and which exceptions it raises. Prints one line for each."""

import json
import os
import threading
import time

import openai

address, key, strict = os.environ["GATEWAY"], os.environ["OPENAI_API_KEY"], os.environ["STRICT_KEY"]
client = openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0, timeout=120)
question = [{"role": "user", "content": "Say hello."}]


def step(name):
    def run(check):
        check()
        print(f"ok {name}", flush=True)

    return run


def raises(kind, call):
    try:
        call()
    except kind as error:
        # One that is a kind of another one is not it.
        assert type(error) is kind, f"{type(error).__name__} instead of {kind.__name__}"
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


@step("list and retrieve")
def _():
    ids = [model.id for model in client.models.list()]
    assert ids == ["chat", "embed"], ids
    assert client.models.retrieve("chat").id == "chat"


@step("chat")
def _():
    answer = client.chat.completions.create(model="chat", messages=question, max_tokens=8, seed=1)
    assert answer.choices[0].message.content, answer
    assert answer.usage.prompt_tokens > 0 and 0 < answer.usage.completion_tokens <= 8, answer.usage


@step("raw headers")
def _():
    raw = client.chat.completions.with_raw_response.create(model="chat", messages=question, max_tokens=2)
    assert raw.headers["x-request-id"] and raw.parse()._request_id == raw.headers["x-request-id"]


@step("stream")
def _():
    chunks = list(client.chat.completions.create(model="chat", messages=question, max_tokens=8, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert chunks[-1].choices[0].finish_reason, chunks[-1]
    assert all(chunk.usage is None for chunk in chunks), "usage that was not asked for"


@step("stream with usage")
def _():
    options = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(
            model="chat", messages=question, max_tokens=8, stream=True, stream_options=options
        )
    )
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0, chunks[-1]


@step("stream that is left early")
def _():
    with client.chat.completions.create(model="chat", messages=question, max_tokens=400, stream=True) as stream:
        next(iter(stream))


@step("completions")
def _():
    answer = client.completions.create(model="chat", prompt="Once upon a time", max_tokens=8)
    assert answer.choices[0].text and answer.usage.completion_tokens <= 8


@step("tools are taken")
def _():
    # This model's template knows none; that they are passed on as they came is shown with an engine that tells what it got.
    tool = {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": "Looks something up",
            "parameters": {"type": "object", "properties": {"what": {"type": "string"}}, "required": ["what"]},
        },
    }
    answer = client.chat.completions.create(
        model="chat", messages=question, max_tokens=64, tools=[tool], tool_choice="required"
    )
    assert answer.choices[0].message, answer


@step("embeddings")
def _():
    answer = client.embeddings.create(model="embed", input=["hello", "goodbye"], encoding_format="float")
    assert len(answer.data) == 2 and len(answer.data[0].embedding) > 100
    assert answer.usage.prompt_tokens > 0


@step("errors")
def _():
    chat = client.chat.completions.create
    wrong = raises(openai.BadRequestError, lambda: chat(model="chat", messages=question, n=1000))
    assert wrong.param == "n" and wrong.code == "invalid_value", wrong
    raises(openai.BadRequestError, lambda: chat(model="embed", messages=question))
    raises(openai.NotFoundError, lambda: chat(model="nothing", messages=question))
    raises(openai.NotFoundError, lambda: client.models.retrieve("nothing"))
    forged = client.with_options(api_key=key[:-1] + ("A" if key[-1] != "A" else "E"))
    assert raises(openai.AuthenticationError, lambda: forged.models.list()).code == "invalid_api_key"
    too_long = [{"role": "user", "content": "word " * 20_000}]
    assert raises(openai.BadRequestError, lambda: chat(model="chat", messages=too_long)).code == "refused_by_model"


@step("limits, and the client's own retries by our headers")
def _():
    # One request at once: who comes second is told to come again, and does.
    limited = openai.OpenAI(base_url=f"{address}/v1", api_key=strict, max_retries=0, timeout=120)
    # It goes on to its last token, whatever it has to say.
    ask = dict(model="chat", messages=question, max_tokens=200, extra_body={"ignore_eos": True})
    first = threading.Thread(target=lambda: limited.chat.completions.create(**ask))
    first.start()
    time.sleep(0.3)
    refused = raises(openai.RateLimitError, lambda: limited.chat.completions.create(**ask))
    assert refused.code == "rate_limit_exceeded" and refused.response.headers["retry-after"], refused
    # 200 tokens take long on a machine that does other things as well, and each retry is a second later.
    patient = limited.with_options(max_retries=60)
    assert patient.chat.completions.create(model="chat", messages=question, max_tokens=2).choices
    first.join()


print(json.dumps({"openai": openai.__version__}))

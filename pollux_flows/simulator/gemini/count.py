"""Gemini's `POST /models/{model}:countTokens`: counts a request as its answer would bill it, and generates nothing."""

from __future__ import annotations

from pollux_flows.simulator.gemini import fields, rules
from pollux_flows.simulator.gemini.reading import cache_of, read
from pollux_flows.simulator.wire import BadRequest, Call, Operation, Reply


def _respond(call: Call) -> Reply:
    message = rules.read_message(call.body, fields.COUNT)
    if {"contents", "generateContentRequest"} <= message.keys():
        raise BadRequest("* CountTokensRequest: contents and generate_content_request are mutually exclusive.\n")
    call.body = message
    if "generateContentRequest" in message:
        call.body = message["generateContentRequest"]
        if call.body["model"] != f"models/{call.params['model']}":
            raise BadRequest("The model of generate_content_request has to be that of the request.")
    count = read(call).input_tokens
    cache = cache_of(call)
    return Reply({"totalTokens": count, **({"cachedContentTokenCount": cache.tokens} if cache else {})})


OPERATIONS = (Operation("count_tokens", "POST", "/{version:apiversion}/models/{model}:countTokens", _respond),)

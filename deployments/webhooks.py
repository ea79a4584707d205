"""Receive webhooks from OpenAI and Gemini, and emit each as an event on the Prefect server of your profile.

Start it with `uvicorn webhooks:app`, or mount `app` in a web app of yours. See docs/webhooks.md.
"""

import json
import os

from openai import OpenAI
from prefect.events import emit_event
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

SECRETS = {"openai": os.environ.get("OPENAI_WEBHOOK_SECRET"), "gemini": os.environ.get("GEMINI_WEBHOOK_SECRET")}

MOST_BYTES = 1 << 20  # a webhook has only a few hundred bytes

# Both providers sign as described by standardwebhooks.com. The client sends no request, so it needs no key.
verify_signature = OpenAI(api_key="none").webhooks.verify_signature


async def receive(request: Request) -> Response:
    """Check the signature of a webhook, and emit it as an event such as `openai.batch.completed`."""
    provider = request.path_params["provider"]
    if not (secret := SECRETS.get(provider)):
        return Response("There is no secret for this provider.", status_code=404)
    body = b""
    async for piece in request.stream():
        if len(body := body + piece) > MOST_BYTES:
            return Response("This request is too large for a webhook.", status_code=413)
    try:
        verify_signature(body, request.headers, secret=secret)
    except (ValueError, TypeError) as error:
        return Response(str(error), status_code=400)
    webhook = json.loads(body)
    resource = {"prefect.resource.id": f"{provider}.webhook"}
    emit_event(f"{provider}.{webhook['type']}", resource, payload=webhook.get("data") or {})
    return Response(status_code=204)


app = Starlette(routes=[Route("/webhooks/{provider}", receive, methods=["POST"])])
